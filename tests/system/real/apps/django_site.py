"""A Django project in one file."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

from django.conf import settings
from django.core.handlers.wsgi import WSGIHandler
from django.http import FileResponse, HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.urls import path

settings.configure(
    ROOT_URLCONF=__name__,
    ALLOWED_HOSTS=["*"],
    SECRET_KEY="of no use outside the tests",
    USE_TZ=True,
    MIDDLEWARE=[
        "django.middleware.common.CommonMiddleware",
        "django.middleware.gzip.GZipMiddleware",
        "django.middleware.http.ConditionalGetMiddleware",
    ],
    # Small, so that Django writes an upload of some megabytes to a file.
    FILE_UPLOAD_MAX_MEMORY_SIZE=64 * 1024,
)


def hello(request: HttpRequest, name: str = "world") -> HttpResponse:
    answer = HttpResponse(f"hello {name}", content_type="text/plain; charset=utf-8")
    answer.set_cookie("seen", "yes", httponly=True)
    answer.set_cookie("theme", "dark")
    return answer


def upload(request: HttpRequest) -> JsonResponse:
    sums = {}
    for field, file in request.FILES.items():
        digest = hashlib.sha256()
        for chunk in file.chunks():
            digest.update(chunk)
        sums[field] = {"name": file.name, "size": file.size, "sha256": digest.hexdigest()}
    return JsonResponse({"files": sums, "fields": request.POST.dict()})


def raw(request: HttpRequest) -> JsonResponse:
    digest, size = hashlib.sha256(), 0
    while chunk := request.read(10_000):
        digest.update(chunk)
        size += len(chunk)
    return JsonResponse({"size": size, "sha256": digest.hexdigest()})


def lines(request: HttpRequest) -> StreamingHttpResponse:
    def produce() -> Iterator[str]:
        for number in range(1000):
            yield f"line {number}\n"

    return StreamingHttpResponse(produce(), content_type="text/plain")


def download(request: HttpRequest) -> FileResponse:
    return FileResponse(Path("large.bin").open("rb"), as_attachment=True)


def fail(request: HttpRequest) -> HttpResponse:
    raise RuntimeError("the view's own mistake")


urlpatterns = [
    path("", hello),
    path("hello/<str:name>", hello),
    path("upload", upload),
    path("raw", raw),
    path("lines", lines),
    path("download", download),
    path("fail", fail),
]


def create_app() -> WSGIHandler:
    import django

    django.setup(set_prefix=False)
    return WSGIHandler()
