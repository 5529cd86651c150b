# Completion in bash for qvm-device and its family; source it, or install it as
# /usr/share/bash-completion/completions/qvm-device with the other names linked to it.
# The program itself knows what fits: it is asked over descriptor 8, as argcomplete's programs are.

_pedos_complete() {
    local IFS=$'\013'
    COMPREPLY=($(_ARGCOMPLETE=1 _ARGCOMPLETE_IFS="$IFS" \
        _ARGCOMPLETE_COMP_WORDBREAKS="$COMP_WORDBREAKS" \
        COMP_LINE="$COMP_LINE" COMP_POINT="$COMP_POINT" "$1" 8>&1 1>/dev/null 2>/dev/null))
}

# Where the program has nothing to offer, a file may be meant: readline offers those.
complete -o default -F _pedos_complete qvm-device qvm-block qvm-usb qvm-pci qvm-mic \
    qvm-ls qvm-start qvm-shutdown qvm-sleep qvm-policy qvm-prompt qvm-audit qvm-call qvm-calls \
    qvm-run qvm-settings
