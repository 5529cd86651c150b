"""What hypothesis needs to know to make frames of sound and messages of pedos-sound's link."""

from __future__ import annotations

import string

from hypothesis import strategies as st
from pedos_protocol import sound_frames as frames
from pedos_protocol import sound_link as link
from pedos_protocol.names import DESCRIPTION_MAX, DEVICE_ID_MAX, VM_NAME_MAX

LETTERS = string.ascii_letters
counters = st.integers(0, 2**32 - 1)
ids = counters
versions = st.integers(0, 2**16 - 1)


def lines(most: int) -> st.SearchStrategy[str]:
    """Texts of one line, in all scripts, of at most so many bytes."""
    characters = st.characters(exclude_categories=["Cc", "Cs"])
    return st.text(characters, max_size=most).filter(lambda text: len(text.encode()) <= most)


def words(first: str, others: str, most: int) -> st.SearchStrategy[str]:
    rest = st.text(others, max_size=most - 1)
    return st.builds("".join, st.tuples(st.sampled_from(first), rest))


sentences = lines(link.LINE_MAX)
descriptions = lines(DESCRIPTION_MAX)
vms = words(LETTERS, LETTERS + string.digits + "_-", VM_NAME_MAX)
device_ids = words(LETTERS + string.digits, LETTERS + string.digits + "._-", DEVICE_ID_MAX)
identities = st.text(LETTERS + string.digits + ":._-", max_size=link.IDENTITY_MAX)
devices = st.builds(link.Device, device_ids, identities, descriptions, st.booleans())
messages = st.one_of(
    st.builds(link.Hello, versions, sentences),
    st.builds(link.Server, sentences),
    st.builds(
        link.Devices,
        st.lists(devices, max_size=3, unique_by=lambda device: device.id).map(tuple),
    ),
    st.builds(link.Ready, ids),
    st.builds(link.Failed, ids, sentences),
    st.builds(link.Listening, ids, st.booleans()),
    st.builds(link.Ended, ids, sentences),
    st.builds(link.Welcome, versions),
    st.builds(link.Lend, ids, device_ids, identities, vms, st.booleans()),
    st.builds(link.Borrow, ids, vms, device_ids, descriptions),
    st.builds(link.Mute, ids, st.booleans()),
    st.builds(link.Close, ids),
    st.builds(link.Refused, sentences),
)

samples = st.binary(min_size=1, max_size=frames.AUDIO_MAX // 2).map(lambda half: half * 2)
whole_frames = st.one_of(
    st.builds(frames.Frame, st.just(frames.AUDIO), counters, samples),
    st.builds(frames.silence, counters, st.integers(1, frames.SILENCE_MAX)),
    st.sampled_from([frames.Frame(frames.START), frames.Frame(frames.STOP)]),
)
