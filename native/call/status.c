#include "status.h"

#include "say.h"

#include <stdio.h>
#include <unistd.h>

/* A text as JSON has it. What the agent says has no control characters. */
static void write_text(FILE *line, const char *name, const char *text)
{
    fprintf(line, ", \"%s\": \"", name);
    for (; *text; text++) {
        if (*text == '"' || *text == '\\')
            fputc('\\', line);
        fputc(*text, line);
    }
    fputc('"', line);
}

void status_write(int fd, const struct packet_answer *answer)
{
    /* Each character of a text may take two bytes. */
    char bytes[2 * sizeof *answer + 256];
    FILE *line = fd == -1 ? NULL : fmemopen(bytes, sizeof bytes, "w");
    long length;

    if (!line)
        return;
    if (answer->type == PACKET_STARTED) {
        fputs("{\"event\": \"started\"", line);
        write_text(line, "call", answer->call);
    } else {
        fputs("{\"event\": \"ended\"", line);
        write_text(line, "kind", packet_kind_word(answer->kind));
        fprintf(line, ", \"status\": %u, \"exit_status\": %u", answer->status, answer->exit_status);
        write_text(line, "text", answer->text);
        write_text(line, "rule", answer->rule);
        write_text(line, "hint", answer->hint);
    }
    write_text(line, "request", answer->request);
    fputs("}\n", line);
    fflush(line);
    length = ftell(line);
    fclose(line);
    /* Whoever reads there and has gone does not matter to the call. */
    if (length > 0 && write(fd, bytes, (size_t)length) < 0)
        return;
}

void status_say(const struct packet_answer *answer)
{
    if (*answer->text)
        say("%s", answer->text);
    if (*answer->rule)
        say_more("rule: ", answer->rule);
    if (*answer->hint)
        say_more("try:  ", answer->hint);
    if (answer->kind == PACKET_REFUSED && *answer->request)
        say_more("request: ", answer->request);
}
