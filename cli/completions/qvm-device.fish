# Completion in fish for qvm-device and its family; install it as
# /usr/share/fish/vendor_completions.d/qvm-device.fish with the other names linked to it.
# The program itself knows what fits: it is asked over descriptor 8, as argcomplete's programs are.

function __pedos_complete
    set -lx _ARGCOMPLETE 1
    set -lx _ARGCOMPLETE_IFS \n
    set -lx _ARGCOMPLETE_COMP_WORDBREAKS ''
    set -lx COMP_LINE (commandline --current-process --cut-at-cursor)
    set -l program (commandline --current-process --tokenize)[1]
    set -l found ($program 8>&1 1>/dev/null 2>/dev/null)
    if set -q found[1]
        printf '%s\n' $found
    else
        # A file may be meant.
        __fish_complete_path (commandline --current-token)
    end
end

for program in qvm-device qvm-block qvm-usb qvm-pci qvm-mic \
        qvm-ls qvm-start qvm-shutdown qvm-sleep qvm-policy qvm-prompt qvm-audit qvm-call qvm-calls qvm-run qvm-settings
    complete --command $program --no-files --arguments '(__pedos_complete)'
end
