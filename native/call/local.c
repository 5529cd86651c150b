#include "local.h"

#include "say.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

static bool failed(const char *what, int error)
{
    say("%s: %s", what, strerror(error));
    return false;
}

/* Has the program find our standard input or output at another number. */
static bool save(int fd, const char *variable)
{
    char number[16];
    int saved = fcntl(fd, F_DUPFD, 3);

    if (saved < 0)
        return false;
    snprintf(number, sizeof number, "%d", saved);
    return !setenv(variable, number, 1);
}

static int spawn(pid_t *pid, char **arguments, const int descriptors[2])
{
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    sigset_t usual, none;
    int error;

    sigemptyset(&usual);
    sigaddset(&usual, SIGPIPE);
    sigemptyset(&none);
    posix_spawn_file_actions_init(&actions);
    posix_spawnattr_init(&attributes);
    posix_spawnattr_setsigdefault(&attributes, &usual);
    posix_spawnattr_setsigmask(&attributes, &none);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSIGMASK);
    error = posix_spawn_file_actions_adddup2(&actions, descriptors[0], 0);
    if (!error)
        error = posix_spawn_file_actions_adddup2(&actions, descriptors[1], 1);
    if (!error)
        error = posix_spawnp(pid, arguments[0], &actions, &attributes, arguments, environ);
    posix_spawnattr_destroy(&attributes);
    posix_spawn_file_actions_destroy(&actions);
    return error;
}

bool local_start(struct local *local, char **arguments, const int descriptors[2])
{
    int nothing = open("/dev/null", O_RDWR | O_CLOEXEC);
    int error;

    if (nothing < 0 || !save(0, "SAVED_FD_0") || !save(1, "SAVED_FD_1"))
        return failed("cannot start the local program", errno);
    error = spawn(&local->pid, arguments, descriptors);
    if (error)
        return failed(arguments[0], error);
    local->pidfd = (int)syscall(SYS_pidfd_open, local->pid, 0);
    if (local->pidfd < 0)
        return failed("cannot wait for the local program", errno);
    fcntl(local->pidfd, F_SETFD, FD_CLOEXEC);
    close(descriptors[0]);
    close(descriptors[1]);
    /* They are the program's alone now, and end when it closes them. */
    for (int fd = 0; fd < 2; fd++) {
        close(atoi(getenv(fd ? "SAVED_FD_1" : "SAVED_FD_0")));
        dup2(nothing, fd);
    }
    close(nothing);
    return true;
}

void local_ended(struct local *local)
{
    int status = 0;

    if (waitpid(local->pid, &status, 0) < 0)
        local->exit_status = SAY_FAILED;
    else
        local->exit_status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    close(local->pidfd);
    local->pidfd = -1;
}
