#include "streams.h"

#include "text.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>

void host_tell(struct host *host, enum link_type type, uint32_t id, bool state, const char *why)
{
    struct link_message message = {.type = type, .id = id, .flag = state};

    text_to_line(message.line, LINK_LINE_MAX, why);
    agent_send(host->agent, &message);
}

const char *inbox_read(struct inbox *inbox, int fd)
{
    ssize_t count;

    memmove(inbox->bytes, inbox->bytes + inbox->at, inbox->have - inbox->at);
    inbox->have -= inbox->at;
    inbox->at = 0;
    count = recv(fd, inbox->bytes + inbox->have, sizeof inbox->bytes - inbox->have, MSG_DONTWAIT);
    if (count > 0)
        inbox->have += (size_t)count;
    else if (!count || (errno != EAGAIN && errno != EINTR))
        return CHANNEL_CLOSED;
    return NULL;
}

int64_t inbox_take(struct inbox *inbox, enum frame_side sender, struct frame *frame)
{
    int64_t taken =
        frame_take(frame, sender, inbox->bytes + inbox->at, inbox->have - inbox->at);

    if (taken > 0)
        inbox->at += (size_t)taken;
    return taken;
}
