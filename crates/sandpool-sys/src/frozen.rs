//! The two pieces of machine code that freeze a process into a file, and start processes from that file.
//!
//! ```text
//! freezer   called inside the process: remembers where it stands, writes its memory to a file, and returns 0
//! thawer    the start of a program whose file is that memory: maps it where it was, and returns 1 from the call
//! ```
//!
//! Neither uses a library, a stack of its own, or an address that is fixed when it is compiled: the freezer runs in an
//! interpreter's process, the thawer in one that has nothing yet. What is written where is decided by whoever fills in
//! the table that both read. Offsets in bytes, numbers little endian, addresses and lengths in whole pages:
//!
//! ```text
//!   0  free          8  number of regions   16  where to go on      24  stack pointer
//!  32  thread (fs)  40  thread id's place   48  list of robust locks, and its length
//!  64  restartable sequences' area, and its length                  80  the C library's idea of the heap's end
//!  88  vdso         96  free               104  number of pieces    112  pieces of the vdso: distance from it, length
//! 240  free
//! 256  regions: address, length, protection (u32), flags of mmap(2) (u32), place in the file
//! ```
//!
//! The program is one segment: the ELF header, the thawer at [`THAWER`], the table at [`TABLE`]. The file is open as
//! descriptor 3 when it is started; the regions are mapped from there, private to the process that is thawed. Where a
//! region cannot be had because something of the new process lies there already, the thawer exits with [`NO_ROOM`].

/// Where the thawer's code belongs in the file, in bytes: behind one ELF header and two program headers.
pub const THAWER: usize = 64 + 2 * 56;

/// Where the table belongs in the file, in bytes.
pub const TABLE: usize = 4096;

/// The exit code of a thawer that found an address taken. Another attempt has other addresses.
pub const NO_ROOM: i32 = 70;

#[cfg(target_arch = "x86_64")]
std::arch::global_asm!(
    r#"
    .pushsection .rodata.sandpool_frozen, "a"
    .globl sandpool_thawer, sandpool_thawer_end, sandpool_freezer, sandpool_freezer_end
    .p2align 12
sandpool_thawer:
    /* r15: the table, which follows the page that this code is in. */
    lea r15, [rip + sandpool_thawer]
    and r15, -4096
    add r15, 4096
    /* Past arguments and environment to the auxiliary vector: r14, where this process has its vdso (AT_SYSINFO_EHDR). */
    mov rcx, [rsp]
    lea rsi, [rsp + 8*rcx + 16]
1:  lodsq
    test rax, rax
    jnz 1b
2:  lodsq
    mov rdx, rax
    lodsq
    test rdx, rdx
    jz 9f
    cmp rdx, 33
    jne 2b
    mov r14, rax
    /* Each region, by mmap: from descriptor 3, or from nowhere when its flags say MAP_ANONYMOUS. */
    mov r12, [r15 + 8]
    lea r13, [r15 + 256]
3:  test r12, r12
    jz 4f
    mov rdi, [r13]
    mov rsi, [r13 + 8]
    mov edx, [r13 + 16]
    mov r10d, [r13 + 20]
    mov r9, [r13 + 24]
    mov r8d, 3
    test r10d, 0x20
    jz 5f
    mov r8, -1
5:  mov eax, 9
    syscall
    cmp rax, [r13]
    jne 9f
    add r13, 32
    dec r12
    jmp 3b
    /* The vdso and its data, by mremap, to where the C library will call it. */
4:  lea r13, [r15 + 112]
    mov r12, [r15 + 104]
    mov rbx, [r15 + 88]
    cmp rbx, r14
    je 7f
6:  test r12, r12
    jz 7f
    mov rdi, [r13]
    lea r8, [rbx + rdi]
    add rdi, r14
    mov rsi, [r13 + 8]
    mov rdx, rsi
    mov r10d, 3
    mov eax, 25
    syscall
    cmp rax, -4096
    ja 9f
    add r13, 16
    dec r12
    jmp 6b
    /* What the kernel and the C library know of the thread: arch_prctl(ARCH_SET_FS), set_tid_address,
       set_robust_list, rseq, brk. */
7:  mov edi, 0x1002
    mov rsi, [r15 + 32]
    mov eax, 158
    syscall
    mov rdi, [r15 + 40]
    test rdi, rdi
    jz 8f
    mov eax, 218
    syscall
    mov rdi, [r15 + 40]
    mov [rdi], eax
8:  mov rdi, [r15 + 48]
    mov rsi, [r15 + 56]
    test rdi, rdi
    jz 8f
    mov eax, 273
    syscall
8:  mov rdi, [r15 + 64]
    mov rsi, [r15 + 72]
    test rsi, rsi
    jz 8f
    xor edx, edx
    mov r10d, 0x53053053
    mov eax, 334
    syscall
8:  xor edi, edi
    mov eax, 12
    syscall
    mov rdi, [r15 + 80]
    test rdi, rdi
    jz 8f
    mov [rdi], rax
    /* close(3), and back to the call. */
8:  mov edi, 3
    mov eax, 3
    syscall
    mov rsp, [r15 + 24]
    jmp [r15 + 16]
9:  mov edi, 70
    mov eax, 231
    syscall
    ud2
sandpool_thawer_end:

    /* long freeze(table, descriptor): 0 in the process that is frozen, 1 in each that is thawed, or an errno below 0. */
    .p2align 4
sandpool_freezer:
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    sub rsp, 24
    stmxcsr [rsp]
    fnstcw [rsp + 4]
    mov r12, rdi
    mov r13d, esi
    mov [r12 + 24], rsp
    lea rax, [rip + 7f]
    mov [r12 + 16], rax
    /* arch_prctl(ARCH_GET_FS) */
    mov edi, 0x1003
    lea rsi, [r12 + 32]
    mov eax, 158
    syscall
    /* Each region that comes from the file, by pwrite64. A page that cannot be read stays a hole. */
    mov r14, [r12 + 8]
    lea r15, [r12 + 256]
1:  test r14, r14
    jz 5f
    test dword ptr [r15 + 20], 0x20
    jnz 4f
    mov rsi, [r15]
    mov rdx, [r15 + 8]
    mov r10, [r15 + 24]
2:  test rdx, rdx
    jz 4f
    mov edi, r13d
    mov eax, 18
    syscall
    test rax, rax
    jle 3f
    add rsi, rax
    add r10, rax
    sub rdx, rax
    jmp 2b
3:  cmp rax, -14
    jne 8f
    and rsi, -4096
    and r10, -4096
    add rdx, 4095
    and rdx, -4096
    add rsi, 4096
    add r10, 4096
    sub rdx, 4096
    jmp 2b
4:  add r15, 32
    dec r14
    jmp 1b
    /* The table itself. */
5:  mov rsi, r12
    mov rdx, r15
    sub rdx, r12
    mov r10d, 4096
6:  mov edi, r13d
    mov eax, 18
    syscall
    test rax, rax
    js 8f
    add rsi, rax
    add r10, rax
    sub rdx, rax
    jnz 6b
    xor eax, eax
    jmp 8f
7:  ldmxcsr [rsp]
    fldcw [rsp + 4]
    mov eax, 1
8:  add rsp, 24
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbp
    pop rbx
    ret
sandpool_freezer_end:
    .popsection
"#
);

/// The thawer and the freezer, as bytes of machine code; `None` where there are none for this processor.
#[cfg(target_arch = "x86_64")]
#[must_use]
pub fn code() -> Option<(&'static [u8], &'static [u8])> {
    unsafe extern "C" {
        static sandpool_thawer: u8;
        static sandpool_thawer_end: u8;
        static sandpool_freezer: u8;
        static sandpool_freezer_end: u8;
    }
    // SAFETY: each pair of symbols encloses bytes of one read-only section, which live as long as the program.
    unsafe {
        let between = |start: *const u8, end: *const u8| {
            std::slice::from_raw_parts(start, usize::try_from(end.offset_from(start)).unwrap_or(0))
        };
        Some((
            between(&raw const sandpool_thawer, &raw const sandpool_thawer_end),
            between(&raw const sandpool_freezer, &raw const sandpool_freezer_end),
        ))
    }
}

/// See above.
#[cfg(not(target_arch = "x86_64"))]
#[must_use]
pub fn code() -> Option<(&'static [u8], &'static [u8])> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_thawer_fits_before_the_table() {
        let Some((thawer, freezer)) = code() else { return };
        assert!(!thawer.is_empty() && THAWER + thawer.len() <= TABLE, "{}", thawer.len());
        assert!(!freezer.is_empty() && freezer.len() <= 4096, "{}", freezer.len());
    }
}
