/* pedos-sound: microphones between this user's sound server and the agent. See --help. */
#include "log.h"
#include "options.h"
#include "session.h"

#include <pulse/mainloop-signal.h>
#include <pulse/mainloop.h>
#include <signal.h>
#include <stdbool.h>

struct program {
    pa_mainloop *loop;
    struct session *session;
    bool is_ending;
};

static void end(void *context)
{
    struct program *program = context;

    pa_mainloop_quit(program->loop, 0);
}

/* The first one ends in order, another one at once. */
static void signalled(pa_mainloop_api *loop, pa_signal_event *event, int number, void *context)
{
    struct program *program = context;

    (void)loop;
    (void)event;
    (void)number;
    if (program->is_ending)
        end(program);
    else
        session_stop(program->session, end, program);
    program->is_ending = true;
}

int main(int argc, char **argv)
{
    struct program program = {0};
    struct options options;
    pa_mainloop_api *api;
    int status = 1;

    options_parse(&options, argc, argv);
    log_is_verbose = options.is_verbose;
    signal(SIGPIPE, SIG_IGN);
    program.loop = pa_mainloop_new();
    api = program.loop ? pa_mainloop_get_api(program.loop) : NULL;
    program.session = api ? session_new(api, options.socket) : NULL;
    if (!program.session || pa_signal_init(api) < 0) {
        log_warning("out of memory");
        return 1;
    }
    pa_signal_new(SIGTERM, signalled, &program);
    pa_signal_new(SIGINT, signalled, &program);
    if (pa_mainloop_run(program.loop, &status) < 0)
        status = 1;
    session_free(program.session);
    pa_signal_done();
    pa_mainloop_free(program.loop);
    return status;
}
