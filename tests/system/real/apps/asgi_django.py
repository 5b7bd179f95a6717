"""A Django project served by ASGI: it knows neither lifespan nor websockets."""

from collections.abc import AsyncIterator

from django.conf import settings
from django.core.asgi import get_asgi_application
from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.urls import path
from gate import opened

settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], SECRET_KEY="of no use outside the tests")


def hello(request: HttpRequest, name: str = "world") -> HttpResponse:
    return HttpResponse(f"hello {name}")


async def size(request: HttpRequest) -> JsonResponse:
    return JsonResponse({"size": len(request.body)})


async def stream(request: HttpRequest) -> StreamingHttpResponse:
    async def parts() -> AsyncIterator[str]:
        yield "first "
        await opened("stream")
        yield "last"

    return StreamingHttpResponse(parts(), content_type="text/plain")


async def nothing(request: HttpRequest) -> HttpResponse:
    return HttpResponse(status=204)


urlpatterns = [
    path("", hello),
    path("hello/<str:name>", hello),
    path("size", size),
    path("stream", stream),
    path("nothing", nothing),
]
app = get_asgi_application()
