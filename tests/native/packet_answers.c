/* Says how native/call reads datagrams: for each of standard input (u16 length, bytes) one line. */
#include "packet.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void hex(const char *text)
{
    putchar(' ');
    for (; *text; text++)
        printf("%02x", (unsigned char)*text);
}

int main(void)
{
    unsigned char length[2];

    while (fread(length, 1, 2, stdin) == 2) {
        size_t count = length[0] | (size_t)length[1] << 8;
        /* Of exactly this size, so that a sanitizer sees what is beyond. */
        unsigned char *bytes = malloc(count ? count : 1);
        struct packet_answer answer;

        if (!bytes || fread(bytes, 1, count, stdin) != count)
            return 1;
        if (!packet_parse(&answer, bytes, count)) {
            puts("no");
        } else if (answer.type == PACKET_STARTED) {
            printf("started");
            hex(answer.call);
            hex(answer.request);
            putchar('\n');
        } else {
            printf("ended %s %u %u", packet_kind_word(answer.kind), answer.status,
                   answer.exit_status);
            hex(answer.text);
            hex(answer.rule);
            hex(answer.hint);
            hex(answer.request);
            putchar('\n');
        }
        free(bytes);
    }
    return 0;
}
