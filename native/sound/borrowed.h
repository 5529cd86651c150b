/* A microphone of another VM that programs of this session record. */
#ifndef PEDOS_SOUND_BORROWED_H
#define PEDOS_SOUND_BORROWED_H

#include "streams.h"

struct borrowed;

/* Takes fd; READY is told when programs can find it, or FAILED. NULL: no memory. */
struct borrowed *borrowed_new(struct host *host, const struct link_message *message, int fd);
void borrowed_free(struct borrowed *borrowed);

uint32_t borrowed_id(const struct borrowed *borrowed);
bool borrowed_is_over(const struct borrowed *borrowed);

/* The sound server has told its sources anew. */
void borrowed_listed(struct borrowed *borrowed);
/* The sound server is gone, or there again, which offers it anew. */
void borrowed_server_lost(struct borrowed *borrowed);
void borrowed_server_up(struct borrowed *borrowed);
/* Over by itself: FAILED is told, or ENDED if it was ready once. */
void borrowed_end(struct borrowed *borrowed, const char *why);

#endif
