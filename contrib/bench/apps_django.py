"""Django under test: a constant, with those of a new project's middleware that need no session."""

from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponse
from django.urls import path

settings.configure(
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    MIDDLEWARE=[
        "django.middleware.security.SecurityMiddleware",
        "django.middleware.common.CommonMiddleware",
        "django.middleware.csrf.CsrfViewMiddleware",
        "django.middleware.clickjacking.XFrameOptionsMiddleware",
    ],
)


def hello(request: HttpRequest, key: str = "") -> HttpResponse:  # noqa: ARG001
    return HttpResponse("Hello", content_type="text/plain")


urlpatterns = [path("", hello), path("items/<key>", hello)]
app = get_wsgi_application()
