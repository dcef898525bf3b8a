using Iced.Intel;
using static Iced.Intel.AssemblerRegisters;

namespace Tdp.Kernel;

/// <summary>
/// Spin locks: bit 0 of a word. Who waits answers TLB shoot-downs meanwhile, because the holder may be the one who asks (<see cref="TlbCode"/>).
/// Order: conversion lock, then a unit's busy state; console lock, then a unit's busy state. Nothing is taken inside the oops lock.
/// </summary>
internal static class LockCode
{
    public static void Emit(KernelCode k)
    {
        Assembler a = k.A;
        Label wait = k.Local(), taken = k.Local();

        // spin_lock(rdi -> word)
        k.Begin("spin_lock");
        a.@lock.bts(__qword_ptr[rdi], 0);
        a.jnc(taken);
        k.Place(wait);
        a.pause();
        a.push(rdi);
        a.call(k["tlb_poll"]);
        a.pop(rdi);
        a.test(__qword_ptr[rdi], 1);
        a.jne(wait);
        a.jmp(k["spin_lock"]);
        k.Place(taken);
        a.ret();

        // spin_unlock(rdi -> word): a plain store releases under TSO.
        k.Begin("spin_unlock");
        a.mov(__qword_ptr[rdi], 0);
        a.ret();
    }
}
