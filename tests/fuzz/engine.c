/* The fuzzer's way into the engine: each input is a call, as call.c reads it. One engine serves all of them. */
#include "call.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
const char *__asan_default_options(void);

/* The engine frees nothing, so little needs to be kept to see what is used after that; much would not fit the caches. */
const char *__asan_default_options(void) { return "quarantine_size_mb=1"; }

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static uint8_t answer[MAX_ANSWER];
    static engine *e;
    if (!e && !(e = engine_new())) abort();
    call(e, data, size, answer);
    return 0;
}
