/* The kernel calls the payload's entry on every vCPU: RDI = boot-info, RSI = vCPU index, stack as at a function entry. Returning hands the vCPU back. */
    .section .text.start, "ax", @progbits
    .globl _start
    .type _start, @function
_start:
    jmp port_start
    .size _start, . - _start

    .section .note.GNU-stack, "", @progbits
