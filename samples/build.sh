#!/bin/sh
# Rebuilds the samples and their reference outputs. Needs gcc and binutils; running the samples needs neither, which is why the results are committed.
# SAMPLE.elf           the guest program
# SAMPLE.expected.txt  what the same source prints as an ordinary process: the reference for an ordinary VM, and for a TD unless there is
# SAMPLE.td.expected.txt  which adds the lines that only a trust domain prints (written by hand: no native run can show them)
set -eu
cd "$(dirname "$0")"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

guest_flags="-std=gnu11 -O2 -Wall -Wextra -ffreestanding -nostdlib -static -no-pie -fno-pic -fno-pie -mcmodel=small -mno-red-zone -mgeneral-regs-only
    -fno-stack-protector -fcf-protection=none -fno-asynchronous-unwind-tables -Wl,--build-id=none,-z,noexecstack,-z,max-page-size=4096,-T,guest.ld"

for name in hello convert mmio workload; do
    # shellcheck disable=SC2086
    gcc $guest_flags -o "$work/$name.elf" crt0.S port_tdg1.c text.c "$name.c" -lgcc
    strip --strip-debug "$work/$name.elf"
    gcc -std=gnu11 -O2 -Wall -Wextra -o "$work/$name" port_hosted.c text.c "$name.c"
    "$work/$name" > "$work/$name.expected.txt"
    cp "$work/$name.elf" "$work/$name.expected.txt" .
    echo "$name: $(stat -c %s "$name.elf") bytes"
done
