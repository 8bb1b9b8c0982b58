/*
 * Makes the n-th call fail that a module makes of others: of CPython, of libtorch, of libc. x86-64 Linux.
 *
 * Such a call goes through a slot of the module's procedure linkage table. watch() puts a stub there, which
 * asks choose() and goes on to the function, with every argument as it came, or returns the value of a failure. The
 * module is the one that is shipped: nothing in it knows of this.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <link.h>
#include <pthread.h>
#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

#define MOST 192 /* functions that can be watched; there is a stub for each */

struct function {
    void *address; /* what the slot held */
    int64_t value; /* of a failure */
    int has_error; /* a failure sets MemoryError: the call is made with the GIL held */
    long failures;
};

static struct function functions[MOST];
static int function_count;
static long calls, first,
    last;                /* the calls since arm(), and which of them fail: first to last, none where first is 0 */
static pthread_t caller; /* calls of other threads pass */
static int careless;     /* the function that was called last with an exception set, 0 for none, counted from 1 */
static void *(*set_memory_error)(void), *(*pending_error)(void);

/* The function to go on to; NULL, and the value to return instead, where the call fails. */
void *choose(int64_t index, int64_t *value)
{
    struct function *function = &functions[index];
    if (first == 0 || !pthread_equal(pthread_self(), caller) || ++calls < first || calls > last) {
        careless = first != 0 && function->has_error && pending_error() != NULL ? (int)index + 1 : careless;
        return function->address;
    }
    function->failures++;
    *value = function->value;
    if (function->has_error) {
        set_memory_error();
    }
    return NULL;
}

/* A stub pushes its number. The registers of arguments, and rax, which says how many vectors a variadic function got, are kept. */
__asm__(".text\n"
        "common:\n"
        "  push %rbp\n"
        "  mov %rsp, %rbp\n"
        "  push %rdi\n  push %rsi\n  push %rdx\n  push %rcx\n  push %r8\n  push %r9\n  push %rax\n"
        "  sub $136, %rsp\n" /* eight vectors, and the value; aligned to 16 */
        "  and $-16, %rsp\n"
        "  movups %xmm0, (%rsp)\n  movups %xmm1, 16(%rsp)\n  movups %xmm2, 32(%rsp)\n  movups %xmm3, 48(%rsp)\n"
        "  movups %xmm4, 64(%rsp)\n  movups %xmm5, 80(%rsp)\n  movups %xmm6, 96(%rsp)\n  movups %xmm7, 112(%rsp)\n"
        "  mov 8(%rbp), %rdi\n"
        "  lea -64(%rbp), %rsi\n"
        "  call choose@PLT\n"
        "  mov %rax, %r11\n"
        "  movups (%rsp), %xmm0\n  movups 16(%rsp), %xmm1\n  movups 32(%rsp), %xmm2\n  movups 48(%rsp), %xmm3\n"
        "  movups 64(%rsp), %xmm4\n  movups 80(%rsp), %xmm5\n  movups 96(%rsp), %xmm6\n  movups 112(%rsp), %xmm7\n"
        "  mov -8(%rbp), %rdi\n  mov -16(%rbp), %rsi\n  mov -24(%rbp), %rdx\n  mov -32(%rbp), %rcx\n"
        "  mov -40(%rbp), %r8\n  mov -48(%rbp), %r9\n  mov -56(%rbp), %rax\n"
        "  mov -64(%rbp), %r10\n"
        "  mov %rbp, %rsp\n"
        "  pop %rbp\n"
        "  lea 8(%rsp), %rsp\n" /* the number */
        "  test %r11, %r11\n"
        "  jz 1f\n"
        "  jmp *%r11\n"
        "1: mov %r10, %rax\n"
        "  ret\n"
        ".p2align 4\n"
        "stubs:\n"
        ".set number, 0\n"
        ".rept 192\n"
        "  .p2align 4\n"
        "  push $number\n"
        "  jmp common\n"
        "  .set number, number + 1\n"
        ".endr\n");
extern char stubs[];

/* The slot number `index` of the loaded object that holds `address`, and which function it is for; NULL past the last one. */
void **slot_at(const void *address, size_t index, const char **name)
{
    Dl_info info;
    struct link_map *map;
    const ElfW(Rela) *slots = NULL;
    const ElfW(Sym) *symbols = NULL;
    const char *texts = NULL;
    size_t count = 0;
    if (dladdr1(address, &info, (void **)&map, RTLD_DL_LINKMAP) == 0) {
        return NULL;
    }
    for (const ElfW(Dyn) *entry = map->l_ld; entry->d_tag != DT_NULL; entry++) {
        switch (entry->d_tag) {
        case DT_JMPREL: slots = (const void *)entry->d_un.d_ptr; break;
        case DT_PLTRELSZ: count = entry->d_un.d_val / sizeof *slots; break;
        case DT_SYMTAB: symbols = (const void *)entry->d_un.d_ptr; break;
        case DT_STRTAB: texts = (const void *)entry->d_un.d_ptr; break;
        }
    }
    *name = index < count ? texts + symbols[ELF64_R_SYM(slots[index].r_info)].st_name : NULL;
    return index < count ? (void **)(map->l_addr + slots[index].r_offset) : NULL;
}

/* Watches the calls that go through a slot to `address`: the function's number, -1 where there is no room for another. */
int watch(void **slot, void *address, int64_t value, int has_error)
{
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), begin = (uintptr_t)slot & ~(page - 1);
    set_memory_error = (void *(*)(void))dlsym(RTLD_DEFAULT, "PyErr_NoMemory");
    pending_error = (void *(*)(void))dlsym(RTLD_DEFAULT, "PyErr_Occurred");
    if (function_count == MOST || address == NULL || mprotect((void *)begin, page, PROT_READ | PROT_WRITE) != 0) {
        return -1;
    }
    functions[function_count] = (struct function){address, value, has_error, 0};
    *slot = stubs + 16 * function_count;
    return function_count++;
}

/* From now on the calls of this thread count, and those from `from` to `to` fail. */
void arm(long from, long to)
{
    calls = careless = 0;
    first = from;
    last = to;
    caller = pthread_self();
}

/* No call fails any more. Returns how many there were since arm(). */
long disarm(void)
{
    first = 0;
    return calls;
}

/* The number of a function that was called since arm() while an exception was set; -1 for none. */
int called_carelessly(void)
{
    return careless - 1;
}

long failures_of(int index)
{
    return functions[index].failures;
}
