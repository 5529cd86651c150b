#include "status.h"

#include "clock.h"
#include "say.h"

#include <errno.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* Milliseconds for the last line, in however many pieces its reader takes it. It waits only where a
 * pipe is full, whose reader has been silent for dozens of calls already. */
#define PATIENCE 2000

/* A text as JSON has it. What the agent says is UTF-8 without control characters; what this side
 * says may have the name of a file, which can be anything. */
static void write_text(FILE *line, const char *name, const char *text)
{
    fprintf(line, ", \"%s\": \"", name);
    while (*text) {
        const size_t length = packet_character(text);

        if (!length)
            fprintf(line, "\\u%04x", (unsigned char)*text++);
        else if (*text == '"' || *text == '\\')
            fprintf(line, "\\%c", *text++);
        else
            text += fwrite(text, 1, length, line);
    }
    fputc('"', line);
}

static FILE *begin(struct status *status, char bytes[STATUS_LINE], const char *event)
{
    FILE *line = status->fd == -1 ? NULL : fmemopen(bytes, STATUS_LINE, "w");

    if (line)
        fprintf(line, "{\"event\": \"%s\"", event);
    return line;
}

static void end(struct status *status, FILE *line, const char *bytes,
                const struct packet_answer *answer)
{
    long length;

    write_text(line, "request", answer->request);
    fputs("}\n", line);
    fflush(line);
    length = ftell(line);
    fclose(line);
    if (length > 0 && (size_t)length <= sizeof status->bytes - status->end) {
        memcpy(status->bytes + status->end, bytes, (size_t)length);
        status->end += (size_t)length;
    }
    status_go_on(status);
}

void status_started(struct status *status, const struct packet_answer *answer)
{
    char bytes[STATUS_LINE];
    FILE *line = begin(status, bytes, "started");

    if (!line)
        return;
    write_text(line, "call", answer->call);
    end(status, line, bytes, answer);
}

void status_ended(struct status *status, const struct packet_answer *answer, int exit_status)
{
    const bool is_its_own = answer->kind == PACKET_EXITED || answer->kind == PACKET_SIGNALLED;
    char bytes[STATUS_LINE];
    FILE *line = begin(status, bytes, "ended");

    if (!line)
        return;
    write_text(line, "kind", packet_kind_word(answer->kind));
    /* Agents say one of their own with some other ends. */
    fprintf(line, ", \"status\": %u, \"exit_status\": %d", is_its_own ? answer->status : 0,
            exit_status);
    write_text(line, "text", answer->text);
    write_text(line, "rule", answer->rule);
    write_text(line, "hint", answer->hint);
    end(status, line, bytes, answer);
}

void status_wait(const struct status *status, struct pollfd *wait)
{
    const bool has_more = status->start < status->end;

    *wait = (struct pollfd){.fd = has_more ? status->fd : -1, .events = POLLOUT};
}

static void give_up(struct status *status, const char *why)
{
    status->fd = -1;
    say("cannot write what becomes of the call to --status-fd: %s", why);
}

void status_go_on(struct status *status)
{
    struct pollfd wait;

    for (;;) {
        const char *at = status->bytes + status->start;
        size_t left = status->end - status->start;
        ssize_t count;

        status_wait(status, &wait);
        if (wait.fd == -1 || poll(&wait, 1, 0) <= 0)
            return;
        /* Others may share it, so O_NONBLOCK is not set; so much does not block after poll(2). */
        count = send(status->fd, at, left, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (count < 0 && errno == ENOTSOCK)
            count = write(status->fd, at, left < PIPE_BUF ? left : PIPE_BUF);
        if (count < 0) {
            if (errno != EAGAIN && errno != EINTR)
                give_up(status, strerror(errno));
            return;
        }
        status->start += (size_t)count;
    }
}

void status_finish(struct status *status)
{
    const long until = clock_now() + PATIENCE;

    for (;;) {
        struct pollfd wait;
        long left;

        status_go_on(status);
        status_wait(status, &wait);
        if (wait.fd == -1)
            return;
        left = until - clock_now();
        if (left <= 0 || poll(&wait, 1, (int)left) <= 0)
            break;
    }
    give_up(status, "nobody reads there");
}

void status_say(const struct packet_answer *answer)
{
    if (*answer->text)
        say("%s", answer->text);
    if (*answer->rule)
        say_more("rule: ", answer->rule);
    if (*answer->hint)
        say_hint(answer->hint);
    if (answer->kind == PACKET_REFUSED && *answer->request)
        say_more("request: ", answer->request);
}
