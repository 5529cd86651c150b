#include "options.h"

#include "say.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char HELP[] =
    "usage: qvm-call [OPTION]... TARGET SERVICE[+ARGUMENT] [[--] PROGRAM [ARGUMENT]...]\n"
    "\n"
    "Calls a service of another VM, if dom0's policy lets this VM do that. The service gets what\n"
    "comes on standard input; what it writes comes out on standard output and error. With PROGRAM\n"
    "the service is connected to that program instead, which is started as soon as the service is.\n"
    "\n"
    "TARGET is the name of a VM, or @default (also \"\"), @dispvm or @dispvm:VM. dom0's rules may\n"
    "send the call to another VM. '$' is read as '@'.\n"
    "\n"
    "options:\n"
    "  --user USER          run the service as this user (in dom0 alone: a VM's calls run as the\n"
    "                       rules say)\n"
    "  -p, --prefix-data TEXT  send TEXT to the service before anything else\n"
    "  -t, --filter-escape-chars-stdout   replace what could control a terminal in the output by\n"
    "  -T, --filter-escape-chars-stderr   '_': the default where that goes to a terminal\n"
    "  --no-filter-escape-chars-stdout    never do that\n"
    "  --no-filter-escape-chars-stderr\n"
    "  --use-stdin-socket   standard input is a socket, and the output goes there as well\n"
    "  --forward-signals    pass SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2 and SIGWINCH on to\n"
    "                       the service, which gets them if its configuration says so\n"
    "  --buffer-size BYTES  accepted for programs that say it; there is nothing to be set\n"
    "  --status-fd N        write to this descriptor, a line of JSON each, that the service has\n"
    "                       started and how the call has ended\n"
    "  --version            print the version\n"
    "  --help               print this\n"
    "\n"
    "PROGRAM finds the standard input and output of qvm-call at the descriptors whose numbers are\n"
    "in SAVED_FD_0 and SAVED_FD_1.\n"
    "\n"
    "exit status: that of the service, or if that is 0 that of PROGRAM; and\n"
    "  125     the call, or something here, has failed; a sentence says what\n"
    "  126     denied by policy\n"
    "  127     the target has no such service\n"
    "  128+N   signal N has killed the service\n"
    "\n"
    "examples:\n"
    "  qvm-call vault work.Sign <letter.txt >letter.sig\n"
    "  qvm-call @default work.Search+archive -- less\n"
    "  tar c notes | qvm-call backup work.Store+notes\n";

enum long_only {
    USER = 256,
    NO_FILTER_STDOUT,
    NO_FILTER_STDERR,
    USE_STDIN_SOCKET,
    FORWARD_SIGNALS,
    BUFFER_SIZE,
    STATUS_FD,
    HELP_OPTION,
    VERSION_OPTION,
};

static const struct option LONG[] = {
    {"user", required_argument, NULL, USER},
    {"prefix-data", required_argument, NULL, 'p'},
    {"filter-escape-chars-stdout", no_argument, NULL, 't'},
    {"filter-escape-chars-stderr", no_argument, NULL, 'T'},
    {"no-filter-escape-chars-stdout", no_argument, NULL, NO_FILTER_STDOUT},
    {"no-filter-escape-chars-stderr", no_argument, NULL, NO_FILTER_STDERR},
    {"use-stdin-socket", no_argument, NULL, USE_STDIN_SOCKET},
    {"forward-signals", no_argument, NULL, FORWARD_SIGNALS},
    {"buffer-size", required_argument, NULL, BUFFER_SIZE},
    {"status-fd", required_argument, NULL, STATUS_FD},
    {"help", no_argument, NULL, HELP_OPTION},
    {"version", no_argument, NULL, VERSION_OPTION},
    {NULL, 0, NULL, 0},
};

const struct option *options_long(void)
{
    return LONG;
}

static void misused(const char *what, const char *word)
{
    say("usage: %s%s", what, word);
    say_hint("qvm-call --help");
    exit(SAY_FAILED);
}

static long number(const char *option, const char *text)
{
    char *end;
    long value;

    errno = 0;
    value = strtol(text, &end, 10);
    if (errno || *end || end == text || value < 0 || value > INT_MAX)
        misused(option, ": a number is meant");
    return value;
}

/* Copies a word whose length the agent checks with more words. */
static void take(char into[OPTIONS_WORD], const char *word, size_t length, const char *what)
{
    if (length >= OPTIONS_WORD)
        misused(what, " is much too long");
    memcpy(into, word, length);
    into[length] = '\0';
}

static void take_target(struct options *options, const char *word)
{
    take(options->target, *word ? word : "@default", strlen(*word ? word : "@default"), "TARGET");
    /* Older rules and programs write it so. */
    for (char *at = options->target; *at; at++)
        if (*at == '$')
            *at = '@';
}

static void take_service(struct options *options, const char *word)
{
    const char *plus = strchr(word, '+');
    size_t length = plus ? (size_t)(plus - word) : strlen(word);

    take(options->service, word, length, "SERVICE");
    take(options->argument, plus ? plus : "+", strlen(plus ? plus : "+"), "ARGUMENT");
}

static void check(struct options *options, bool filters_by_wish)
{
    int mode;

    if (options->uses_stdin_socket && options->local)
        misused("--use-stdin-socket", " and a local program exclude each other");
    if (options->uses_stdin_socket && filters_by_wish)
        misused("--use-stdin-socket", " and -t exclude each other");
    if (options->status_fd == -1)
        return;
    mode = fcntl(options->status_fd, F_GETFL);
    if (mode >= 0 && (mode & O_PATH || (mode & O_ACCMODE) == O_RDONLY))
        misused("--status-fd", ": this descriptor is not open for writing");
    /* These are given away, and their numbers are the local program's. */
    if (options->status_fd <= STDERR_FILENO)
        options->status_fd = fcntl(options->status_fd, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
    if (options->status_fd == -1 || fcntl(options->status_fd, F_SETFD, FD_CLOEXEC) < 0)
        misused("--status-fd", ": this descriptor is not open");
}

void options_parse(struct options *options, int argc, char **argv)
{
    enum { BY_TERMINAL, NO, YES } filter_stdout = BY_TERMINAL, filter_stderr = BY_TERMINAL;
    int option;

    *options = (struct options){.user = "", .prefix = "", .status_fd = -1};
    opterr = 0;
    /* What follows the service is the local program's. */
    while ((option = getopt_long(argc, argv, "+p:tT", LONG, NULL)) != -1) {
        switch (option) {
        case USER:
            options->user = optarg;
            break;
        case 'p':
            options->prefix = optarg;
            break;
        case 't':
            filter_stdout = YES;
            break;
        case 'T':
            filter_stderr = YES;
            break;
        case NO_FILTER_STDOUT:
            filter_stdout = NO;
            break;
        case NO_FILTER_STDERR:
            filter_stderr = NO;
            break;
        case USE_STDIN_SOCKET:
            options->uses_stdin_socket = true;
            break;
        case FORWARD_SIGNALS:
            options->forwards_signals = true;
            break;
        case BUFFER_SIZE:
            (void)number("--buffer-size", optarg);
            break;
        case STATUS_FD:
            options->status_fd = (int)number("--status-fd", optarg);
            break;
        case HELP_OPTION:
            fputs(HELP, stdout);
            exit(fflush(stdout) ? SAY_FAILED : 0);
        case VERSION_OPTION:
            puts("qvm-call " PEDOS_VERSION);
            exit(fflush(stdout) ? SAY_FAILED : 0);
        default:
            misused("not an option, or one without its value: ", argv[optind - 1]);
        }
    }
    if (argc - optind < 2)
        misused("TARGET and SERVICE are needed", "");
    take_target(options, argv[optind]);
    take_service(options, argv[optind + 1]);
    optind += 2;
    if (optind < argc && !strcmp(argv[optind], "--") && ++optind == argc)
        misused("a program has to follow --", "");
    if (optind < argc)
        options->local = argv + optind;
    check(options, filter_stdout == YES);
    options->filters_stdout = filter_stdout == BY_TERMINAL
                                  ? !options->local && !options->uses_stdin_socket && isatty(1)
                                  : filter_stdout == YES;
    options->filters_stderr = filter_stderr == BY_TERMINAL ? isatty(2) : filter_stderr == YES;
}
