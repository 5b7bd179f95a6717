/* fork_orphan(): fork a process whose parent is the next subreaper, not this process.
 *
 * Functions that the app registers with os.register_at_fork() stop threads before a fork and start them again
 * after it, in parent and child. With two calls of os.fork() they would run in the intermediate process, too:
 * threads would run in it for a moment, and the worker could inherit a lock that one of them holds. Therefore both
 * forks happen here, between the functions for "before" and those for "after". No Python code runs in between (but
 * that of gRPC's handlers, see below), as another thread may have asked for the GIL: in the child it would be given to
 * a thread that does not exist.
 */

#include "native.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

/* Like fork(), without the handlers of pthread_atfork(3). glibc 2.34, musl 1.2.2. */
extern pid_t _Fork(void) __attribute__((weak));

/* The handlers of pthread_atfork(3) have run in the first fork, so one thread can do without them. But those of a
 * library may have started its threads again in the intermediate process (gRPC's do): they have to stop them and
 * start them in the worker. */
static pid_t
fork_again(void)
{
    struct stat threads; /* links: one for each thread, "." and ".." */
    if (_Fork != NULL && stat("/proc/self/task", &threads) == 0 && threads.st_nlink == 3)
        return _Fork();
    return fork();
}

/* In the intermediate process: fork the worker, and write its pid, or a negative errno, to the pipe. Returns only in
 * the worker. */
static void
fork_worker(const int ends[2], bool own_group)
{
    pid_t worker = fork_again();
    if (worker == 0) {
        if (own_group)
            setpgid(0, 0);
        close(ends[0]);
        close(ends[1]);
        return;
    }
    int32_t answer = worker > 0 ? (int32_t)worker : -(int32_t)errno;
    if (worker > 0 && own_group)
        setpgid(worker, 0); /* here, too: the supervisor looks at the group as soon as it knows the pid */
    ssize_t written;
    do
        written = write(ends[1], &answer, sizeof answer);
    while (written < 0 && errno == EINTR);
    _exit(0);
}

/* In the first process: the worker's pid, or a negative errno. */
static int32_t
pid_of_worker(int fd, pid_t intermediate)
{
    int32_t answer;
    ssize_t got;
    do
        got = read(fd, &answer, sizeof answer);
    while (got < 0 && errno == EINTR);
    if (got != sizeof answer)
        answer = -EAGAIN; /* the intermediate process was killed, e.g. for want of memory */
    pid_t ended;
    do /* ECHILD: user code ignores SIGCHLD, or has waited for it */
        ended = waitpid(intermediate, NULL, 0);
    while (ended < 0 && errno == EINTR);
    return answer;
}

PyObject *
native_fork_orphan(PyObject *Py_UNUSED(module), PyObject *argument)
{
    int own_group = PyObject_IsTrue(argument);
    if (own_group < 0 || PySys_Audit("os.fork", NULL) < 0)
        return NULL;
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) < 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    PyOS_BeforeFork();
    pid_t intermediate = fork();
    int failure = errno;
    if (intermediate == 0) {
        fork_worker(ends, own_group);
        PyOS_AfterFork_Child();
        return PyLong_FromLong(0);
    }
    PyOS_AfterFork_Parent();
    close(ends[1]);
    int32_t answer = -(int32_t)failure;
    if (intermediate > 0) {
        Py_BEGIN_ALLOW_THREADS
        answer = pid_of_worker(ends[0], intermediate);
        Py_END_ALLOW_THREADS
    }
    close(ends[0]);
    if (answer < 0) {
        errno = -answer;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    return PyLong_FromLong(answer);
}
