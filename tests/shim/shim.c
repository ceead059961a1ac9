/* A PKCS#11 module for tests: it forwards every call to a real one, records it, and fails or holds the one it is told.
 *
 * TEST_P11_REAL names the real module. TEST_P11_SHIM names the directory of a Shim (shim.py, which says what stands in
 * it and what this module does with it); it is read at every C_Initialize. TEST_P11_INIT_RESERVED is what the real
 * C_Initialize gets as pReserved. The functions themselves are generated from the header (forwarding.py). */
#define _GNU_SOURCE
#define CRYPTOKI_GNU
#include <ctype.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <p11-kit/pkcs11.h>

enum { LINE_BYTES = 8192, SHOWN_BYTES = 1024, PLAN_BYTES = 128 };

/* What a plan says; all empty where there is none for this call. */
struct plan {
    unsigned long n;
    char when[8], what[24], function[40];
    long mechanism;
    char how_long[8];
};

struct call {
    const char *function;
    unsigned long sequence, rv, answer;
    bool refused;                         /* the real function is not called */
    const struct ck_mechanism *mechanism; /* NULL where the function has none */
    struct plan hold, fault;
    size_t length;
    char line[LINE_BYTES];
};

/* A place in the directory for one plan: a symbolic link, so that one system call reads it and one takes it away. */
struct place {
    const char *name;
    char known[PLAN_BYTES]; /* the plan that is counted for */
    unsigned long counted;
};

static struct ck_function_list list, *real;
static char directory[PATH_MAX];
static int calls_file = -1;
static atomic_ulong sequence;
static struct place holds = {.name = "hold"}, faults = {.name = "fault"};
static pthread_mutex_t places = PTHREAD_MUTEX_INITIALIZER;

static const char *in_directory(char path[PATH_MAX], const char *name) {
    if (snprintf(path, PATH_MAX, "%s/%s", directory, name) >= PATH_MAX) abort();
    return path;
}

static bool settle(void) {
    const char *set = getenv("TEST_P11_SHIM");
    char path[PATH_MAX];
    if (!set || strlen(set) >= sizeof directory) return false;
    strcpy(directory, set);
    if (calls_file >= 0) close(calls_file);
    calls_file = open(in_directory(path, "calls"), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    return calls_file >= 0;
}

/* --- the record: a line of JSON when a call begins and one when it ends; never a PIN, data or a secret attribute */

__attribute__((format(printf, 2, 3))) static void put(struct call *call, const char *format, ...) {
    va_list values;
    va_start(values, format);
    call->length += vsnprintf(call->line + call->length, LINE_BYTES - call->length, format, values);
    va_end(values);
    if (call->length >= LINE_BYTES) abort();
}

static void put_hex(struct call *call, const void *bytes, size_t length) {
    static const char digits[] = "0123456789abcdef";
    const unsigned char *next = bytes;
    if (length >= (LINE_BYTES - call->length) / 2) abort();
    for (; length > 0; length--, next++) {
        call->line[call->length++] = digits[*next >> 4];
        call->line[call->length++] = digits[*next & 15];
    }
}

static void start_line(struct call *call, const char *end) {
    call->length = 0;
    put(call, "{\"pid\":%d,\"sequence\":%lu,\"%s\":\"%s\"", getpid(), call->sequence, end, call->function);
}

static void write_line(struct call *call) {
    put(call, "}\n");
    if (write(calls_file, call->line, call->length) != (ssize_t)call->length) abort();
}

static void begin(struct call *call, const char *function) {
    call->function = function;
    call->sequence = ++sequence;
    call->refused = false;
    call->mechanism = NULL;
    call->answer = call->rv = CKR_OK;
    start_line(call, "begin");
    put(call, ",\"tid\":%d", gettid());
}

static void put_number(struct call *call, const char *name, unsigned long value) {
    put(call, ",\"number.%s\":%lu", name, value);
}

static void put_object(struct call *call, const char *name, unsigned long handle) {
    put(call, ",\"object.%s\":%lu", name, handle);
}

static void put_query(struct call *call, const void *buffer) {
    if (!buffer) put(call, ",\"query\":true");
}

/* Whatever a parameter points to is left out, but for the data from which a key is derived. */
static void put_mechanism(struct call *call, const struct ck_mechanism *mechanism) {
    if (!mechanism) return;
    call->mechanism = mechanism;
    put(call, ",\"mechanism\":%lu,\"parameter\":\"", mechanism->mechanism);
    const struct ck_key_derivation_string_data *ecb = mechanism->parameter;
    const struct ck_aes_cbc_encrypt_data_params *cbc = mechanism->parameter;
    if (mechanism->mechanism == CKM_AES_ECB_ENCRYPT_DATA && mechanism->parameter_len == sizeof *ecb) {
        put_hex(call, ecb->string_data, ecb->string_data_len);
    } else if (mechanism->mechanism == CKM_AES_CBC_ENCRYPT_DATA && mechanism->parameter_len == sizeof *cbc) {
        put_hex(call, cbc->iv, sizeof cbc->iv);
        put_hex(call, cbc->data_params, cbc->length);
    } else if (mechanism->parameter) {
        put_hex(call, mechanism->parameter, mechanism->parameter_len);
    }
    put(call, "\"");
}

static bool is_shown(const struct ck_attribute *attribute) {
    bool secret = attribute->type == CKA_VALUE
                  || (attribute->type >= CKA_PRIVATE_EXPONENT && attribute->type <= CKA_COEFFICIENT);
    bool plain = attribute->type < CKA_VENDOR_DEFINED && !(attribute->type & CKF_ARRAY_ATTRIBUTE);
    return plain && !secret && attribute->value && attribute->value_len <= SHOWN_BYTES;
}

static void put_template(struct call *call, const char *name, const struct ck_attribute *attributes, size_t count) {
    put(call, ",\"template.%s\":[", name);
    for (size_t i = 0; attributes && i < count; i++) {
        put(call, "%s[%lu,%ld", i ? "," : "", attributes[i].type, (long)attributes[i].value_len);
        if (is_shown(&attributes[i])) {
            put(call, ",\"");
            put_hex(call, attributes[i].value, attributes[i].value_len);
            put(call, "\"");
        }
        put(call, "]");
    }
    put(call, "]");
}

static void put_asked(struct call *call, const struct ck_attribute *attributes, size_t count) {
    put(call, ",\"asked\":[");
    for (size_t i = 0; attributes && i < count; i++)
        put(call, "%s[%lu,%s]", i ? "," : "", attributes[i].type, attributes[i].value ? "true" : "false");
    put(call, "]");
}

static void put_outcome(struct call *call, const struct ck_attribute *attributes, size_t count) {
    put(call, ",\"outcome\":[");
    for (size_t i = 0; attributes && i < count; i++)
        put(call, "%s%ld", i ? "," : "", (long)attributes[i].value_len);
    put(call, "]");
}

static void put_made(struct call *call, const char *name, const unsigned long *handle) {
    if (call->rv == CKR_OK && handle) put(call, ",\"made.%s\":%lu", name, *handle);
}

static void put_length(struct call *call, const char *name, const unsigned long *length) {
    if (call->rv == CKR_OK && length) put(call, ",\"number.%s\":%lu", name, *length);
}

static void put_found(struct call *call, const unsigned long *handles, const unsigned long *count) {
    if (call->rv != CKR_OK) return;
    put(call, ",\"found\":[");
    for (unsigned long i = 0; i < *count; i++) put(call, "%s%lu", i ? "," : "", handles[i]);
    put(call, "]");
}

/* --- plans */

/* Whether the place's plan is for this call. Each process counts for itself; one of them takes a plan that is not for
 * all calls from there on. */
static bool due(struct place *place, const struct call *call, struct plan *plan) {
    char path[PATH_MAX], text[PLAN_BYTES];
    bool taken = false;
    memset(plan, 0, sizeof *plan);
    ssize_t length = readlink(in_directory(path, place->name), text, sizeof text - 1);
    if (length < 0) return false;
    text[length] = 0;
    struct plan found;
    /* The first word makes two plans differ that say the same. */
    if (sscanf(text, "%*s %lu %7s %23s %39s %ld %7s", &found.n, found.when, found.what, found.function,
               &found.mechanism, found.how_long) != 6)
        abort();
    if (strcmp(found.function, "*") != 0 && strcmp(found.function, call->function) != 0) return false;
    if (found.mechanism >= 0 && !(call->mechanism && call->mechanism->mechanism == (unsigned long)found.mechanism))
        return false;
    pthread_mutex_lock(&places);
    if (strcmp(place->known, text) != 0) {
        strcpy(place->known, text);
        place->counted = 0;
    }
    place->counted++;
    taken = strcmp(found.how_long, "on") == 0 ? place->counted >= found.n
                                              : place->counted == found.n && unlink(path) == 0;
    pthread_mutex_unlock(&places);
    if (taken) *plan = found;
    return taken;
}

static bool at(const struct plan *plan, const char *when) { return strcmp(plan->when, when) == 0; }

/* Says who stands here, and stands until the test lets it go, or is gone. */
static void stand(void) {
    char path[PATH_MAX], line[16];
    int released = open(in_directory(path, "released"), O_RDONLY | O_CLOEXEC);
    int held = open(in_directory(path, "held"), O_WRONLY | O_CLOEXEC);
    int length = snprintf(line, sizeof line, "%d\n", getpid());
    if (held < 0 || released < 0 || write(held, line, length) != length || read(released, line, 1) < 0) abort();
    close(held);
    close(released);
}

static bool is_end(const struct plan *plan) { return !isdigit((unsigned char)plan->what[0]); }

static void end_process(const struct plan *plan) {
    if (strcmp(plan->what, "hang") == 0)
        for (;;) pause();
    raise(strcmp(plan->what, "segv") == 0 ? SIGSEGV : SIGKILL);
    abort();
}

static void enter(struct call *call) {
    if (due(&holds, call, &call->hold)) put(call, ",\"held\":true");
    if (due(&faults, call, &call->fault)) put(call, ",\"fault\":\"%s %s\"", call->fault.when, call->fault.what);
    write_line(call);
    if (at(&call->hold, "before")) stand();
    if (!at(&call->fault, "before")) return;
    if (is_end(&call->fault)) end_process(&call->fault);
    call->refused = true;
    call->answer = strtoul(call->fault.what, NULL, 10);
}

static void acted(struct call *call, unsigned long rv) {
    call->rv = call->answer = rv;
    start_line(call, "end");
    put(call, ",\"real\":%lu", rv);
}

static unsigned long leave(struct call *call) {
    bool fails = at(&call->fault, "after"), ends = fails && is_end(&call->fault);
    if (call->refused) start_line(call, "end");
    if (fails && !ends) call->answer = strtoul(call->fault.what, NULL, 10);
    if (!ends) put(call, ",\"rv\":%lu", call->answer);
    write_line(call);
    if (at(&call->hold, "after")) stand();
    if (ends) end_process(&call->fault);
    return call->answer;
}

/* --- the functions */

#define FORWARD(name, parameters, arguments, before, after)                         \
    unsigned long name parameters {                                                 \
        struct call call;                                                           \
        begin(&call, #name);                                                        \
        before;                                                                     \
        enter(&call);                                                               \
        if (!call.refused) {                                                        \
            acted(&call, real->name ? real->name arguments : CKR_FUNCTION_NOT_SUPPORTED); \
            after;                                                                  \
        }                                                                           \
        return leave(&call);                                                        \
    }

#include "forwarding.h"

unsigned long C_Initialize(void *arguments) {
    /* NSS has a further pointer behind pReserved. */
    static struct { struct ck_c_initialize_args args; void *none; } own;
    struct call call;
    if (!settle()) return CKR_GENERAL_ERROR;
    begin(&call, "C_Initialize");
    enter(&call);
    if (!call.refused) {
        char *reserved = getenv("TEST_P11_INIT_RESERVED");
        if (reserved && arguments) own.args = *(struct ck_c_initialize_args *)arguments;
        own.args.reserved = reserved;
        acted(&call, real->C_Initialize(reserved ? &own : arguments));
    }
    return leave(&call);
}

unsigned long C_GetFunctionList(struct ck_function_list **answer) {
    static const struct ck_function_list own = {FUNCTIONS};
    _Static_assert(sizeof list == offsetof(struct ck_function_list, C_Initialize) + FUNCTION_COUNT * sizeof(void *),
                   "a function of the list is not forwarded");
    if (!answer) return CKR_ARGUMENTS_BAD;
    if (!real) {
        const char *path = getenv("TEST_P11_REAL");
        void *library = path ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : NULL;
        CK_C_GetFunctionList get = library ? (CK_C_GetFunctionList)dlsym(library, "C_GetFunctionList") : NULL;
        if (!get || get(&real) != CKR_OK) return CKR_GENERAL_ERROR;
        list = own;
        list.version = real->version;
    }
    *answer = &list;
    return CKR_OK;
}
