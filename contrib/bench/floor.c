/* The lower bound of hello.py: what an answer costs when nothing is computed.
 *
 * One thread, one epoll, one read and one write a request; it looks for the empty line that ends a request
 * and sends a constant. No parser, no timeouts, no error answers: it is a reference, not a server. A body must come
 * with its head and contain no empty line.
 *
 * usage: floor PORT
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { MAX_FD = 4096, MAX_EVENTS = 64, MAX_PIPELINED = 64 };

#define ANSWER                                                                                              \
    "HTTP/1.1 200 OK\r\n"                                                                                   \
    "Server: floor\r\n"                                                                                     \
    "Date: Thu, 01 Jan 1970 00:00:00 GMT\r\n"                                                               \
    "Connection: keep-alive\r\n"                                                                            \
    "Content-Type: text/plain\r\n"                                                                          \
    "Content-Length: 5\r\n"                                                                                 \
    "\r\n"                                                                                                  \
    "Hello"

/* How much of "\r\n\r\n" a connection's last bytes have matched. */
static unsigned char matched[MAX_FD];

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static int ends_of_requests(int fd, const char *data, ssize_t size)
{
    const char *at = data, *end = data + size, *found;
    unsigned char state = matched[fd];
    int ends = 0;
    if (state == 0) {
        while ((found = memmem(at, (size_t)(end - at), "\r\n\r\n", 4))) {
            ends++;
            at = found + 4;
        }
        if (end - at > 3)
            at = end - 3;
    }
    /* What a read has split, and the beginning of what the next one may complete. */
    for (; at < end; at++) {
        if (*at == "\r\n\r\n"[state])
            state++;
        else
            state = *at == '\r';
        if (state == 4) {
            ends++;
            state = 0;
        }
    }
    matched[fd] = state;
    return ends;
}

static void serve(int fd)
{
    static char answers[MAX_PIPELINED * (sizeof ANSWER - 1)];
    char data[16384];
    ssize_t size = read(fd, data, sizeof data);
    if (size < 0 && errno == EAGAIN)
        return;
    int ends = size > 0 ? ends_of_requests(fd, data, size) : 0;
    if (size <= 0 || ends > MAX_PIPELINED) {
        close(fd);
        return;
    }
    if (answers[0] == 0)
        for (size_t i = 0; i < sizeof answers; i++)
            answers[i] = ANSWER[i % (sizeof ANSWER - 1)];
    size_t length = (size_t)ends * (sizeof ANSWER - 1);
    if (length && write(fd, answers, length) != (ssize_t)length)
        close(fd);
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: floor PORT\n");
        return 2;
    }
    struct sockaddr_in address = {
        .sin_family = AF_INET,
        .sin_port = htons((unsigned short)atoi(argv[1])),
        .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
    };
    int on = 1;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 2048))
        die("floor: bind");
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = listener};
    if (epoll < 0 || epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event))
        die("floor: epoll");
    for (;;) {
        struct epoll_event events[MAX_EVENTS];
        int count = epoll_wait(epoll, events, MAX_EVENTS, -1);
        if (count < 0 && errno != EINTR)
            die("floor: epoll_wait");
        for (int i = 0; i < count; i++) {
            int fd = events[i].data.fd;
            if (fd != listener) {
                serve(fd);
                continue;
            }
            while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
                if (fd >= MAX_FD) {
                    close(fd);
                    continue;
                }
                setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
                matched[fd] = 0;
                event = (struct epoll_event){.events = EPOLLIN, .data.fd = fd};
                epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
            }
        }
    }
}
