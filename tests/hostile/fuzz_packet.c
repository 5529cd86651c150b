/*
 * libFuzzer's target for what qvm-call reads of its agent. Whatever is taken for a message is built
 * again from what was read of it, to the same bytes, so nothing in it was overlooked; and what is
 * read as a text is one that qvm-call itself could send.
 */
#include <stdlib.h>

#include "packet.c"

#define CHECK(what)      \
    do {                 \
        if (!(what))     \
            abort();     \
    } while (0)

/* A terminal may show it: no byte of it is a control character, or none of UTF-8. */
static void show(const char *text)
{
    for (const uint8_t *at = (const uint8_t *)text; *at; at++)
        CHECK(*at >= ' ' && *at != 0x7F && *at != 0xC0 && *at != 0xC1 && *at < 0xF5);
}

/* No packet.c's own: what an agent says is only read there. */
static size_t again(const struct packet_answer *answer, uint8_t *bytes)
{
    struct cursor cursor = {bytes, bytes + PACKET_MAX};

    write_number(&cursor, answer->type, 1);
    if (answer->type == PACKET_STARTED) {
        write_text(&cursor, answer->call, PACKET_ID_MAX);
    } else {
        CHECK(answer->type == PACKET_ENDED && *packet_kind_word(answer->kind));
        write_number(&cursor, answer->kind, 1);
        write_number(&cursor, answer->status, 1);
        write_number(&cursor, answer->exit_status, 1);
        write_text(&cursor, answer->text, PACKET_TEXT_MAX);
        write_text(&cursor, answer->rule, PACKET_RULE_MAX);
        write_text(&cursor, answer->hint, PACKET_HINT_MAX);
    }
    write_text(&cursor, answer->request, PACKET_ID_MAX);
    return cursor.at ? (size_t)(cursor.at - bytes) : 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct packet_answer answer;
    static uint8_t built[PACKET_MAX];
    /* Exactly as long, so that the sanitizer sees each byte beyond it. */
    uint8_t *copy = malloc(size ? size : 1);

    CHECK(copy);
    memcpy(copy, data, size);
    if (packet_parse(&answer, copy, size)) {
        CHECK(size <= PACKET_MAX);
        show(answer.text);
        show(answer.rule);
        show(answer.hint);
        CHECK(again(&answer, built) == size);
        CHECK(!memcmp(built, data, size));
    }
    free(copy);
    return 0;
}
