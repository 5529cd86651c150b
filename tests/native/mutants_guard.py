"""The changes to xen_guard.c that mutants.py tries. Data only."""

from __future__ import annotations

from .mutants_table import Mutant

_AGAIN = "a death is noticed again"

MUTANTS = [
    Mutant(name, "xen_guard.c", old, new, why, "guard")
    for name, old, new, why in [
        (
            "a store that fails is not closed",
            "    link->store = NULL;\n    link->pause",
            "    link->pause",
            _AGAIN,
        ),
        (
            "a store that fails is never opened again",
            "        link->skip--;\n",
            "",
            _AGAIN,
        ),
        (
            "a store that breaks is asked for ever",
            "    if (error && !answered)\n        lose(link, error);\n",
            "",
            _AGAIN,
        ),
        (
            "a store is opened again each round",
            "    link->skip = link->pause;\n",
            "",
            "xenstored is not asked without end",
        ),
        (
            "the pause does not grow",
            "link->pause ? 2 * link->pause : 1;",
            "1;",
            "xenstored is not asked without end",
        ),
        (
            "the pause grows without end",
            "    if (link->pause > PAUSE_MAX)\n        link->pause = PAUSE_MAX;\n",
            "",
            _AGAIN + ", soon",
        ),
        (
            "the pause stays long",
            "        link->pause = 0;\n",
            "",
            _AGAIN + ", soon",
        ),
        (
            "one question without an answer loses the store",
            "    if (error && !answered)\n",
            "    if (error)\n",
            "the other peers are looked for",
        ),
        (
            "it is said in each round",
            "    if ((guards.blind != 0) != (error != 0)) {\n",
            "    {\n",
            "it is said once",
        ),
        (
            "it is not said that it sees again",
            "        say_blind(0);\n",
            "",
            "it is said once",
        ),
        (
            "strangers are let go",
            "sight == GONE && own->peer_seen",
            "sight == GONE",
            "a peer that is not ours shows nothing",
        ),
        (
            "a look is forgotten",
            "            own->peer_seen |= sight == THERE;\n",
            "            ;\n",
            "a peer that was seen and is gone has died",
        ),
        (
            "no answer is a death",
            "        own->unsure = sight == UNKNOWN;\n",
            "        own->unsure = sight == UNKNOWN;\n        own->peer_seen |= own->unsure;\n",
            "a peer that is not ours shows nothing",
        ),
        (
            "the hypervisor is asked once in a life",
            "    open_calls();\n",
            "    if (!guards.first->peer_seen)\n        open_calls();\n",
            _AGAIN,
        ),
        (
            "a guest asks the hypervisor",
            "    if (own->domain != 0)\n        return UNKNOWN;\n",
            "",
            "Linux blocks the hypercall in a guest",
        ),
    ]
]
