/*
 * A borrowed microphone in the sound server that the environment names, and nothing else of the
 * program: what comes in on standard input (s16le mono at 48 kHz) is fed, what the target says goes
 * out as lines. It ends, and takes the source away, on SIGTERM.
 *
 *     target_program NODE_NAME DESCRIPTION
 */
#include <errno.h>
#include <fcntl.h>
#include <pulse/mainloop-signal.h>
#include <pulse/mainloop.h>
#include <signal.h>
#include <stdio.h>
#include <unistd.h>

#include "target.h"

static struct target *target;

static void on_ready(void *context)
{
    (void)context;
    puts("ready");
}

static void on_recorded(void *context, bool is_recorded)
{
    (void)context;
    puts(is_recorded ? "recorded" : "not recorded");
}

static void on_failed(void *context, const char *why)
{
    (void)context;
    printf("failed: %s\n", why);
}

static const struct target_events events = {on_ready, on_recorded, on_failed};

static void on_samples(pa_mainloop_api *api, pa_io_event *event, int fd, pa_io_event_flags_t what,
                       void *data)
{
    static unsigned char bytes[1920];
    static size_t have;
    ssize_t n = read(fd, bytes + have, sizeof bytes - have);

    (void)what, (void)data;
    if (n == 0 || (n < 0 && errno != EAGAIN))
        api->io_enable(event, PA_IO_EVENT_NULL);
    if (n <= 0)
        return;
    have += (size_t)n;
    target_pipewire.feed(target, (const int16_t *)(const void *)bytes, have / 2);
    if (have % 2 != 0)
        bytes[0] = bytes[have - 1];
    have %= 2;
}

static void on_term(pa_mainloop_api *api, pa_signal_event *event, int number, void *data)
{
    (void)event, (void)number, (void)data;
    api->quit(api, 0);
}

int main(int argc, char **argv)
{
    pa_mainloop *loop = pa_mainloop_new();
    pa_mainloop_api *api = pa_mainloop_get_api(loop);
    int status = 1;

    setvbuf(stdout, NULL, _IOLBF, 0);
    if (argc != 3 || pa_signal_init(api) < 0)
        return 2;
    pa_signal_new(SIGTERM, on_term, NULL);
    target = target_pipewire.create(api, NULL, argv[1], argv[2], &events, NULL);
    if (target == NULL)
        return 2;
    fcntl(STDIN_FILENO, F_SETFL, O_NONBLOCK);
    api->io_new(api, STDIN_FILENO, PA_IO_EVENT_INPUT, on_samples, NULL);
    pa_mainloop_run(loop, &status);
    target_pipewire.destroy(target);
    pa_signal_done();
    pa_mainloop_free(loop);
    return status;
}
