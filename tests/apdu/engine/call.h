/* One call of core.h, read from bytes: what the driver of the tests and the fuzzer put into the engine.
 *
 * calls.py writes such bytes; any others are a call too. Whatever they are, some things must hold: `call` ends the
 * process where one does not.
 */
#ifndef TESTS_APDU_ENGINE_CALL_H
#define TESTS_APDU_ENGINE_CALL_H

#include "core.h"

enum { MAX_ANSWER = 1 << 18 };

/* Writes what the engine answered, at most MAX_ANSWER bytes, and says how many: an engine_error in a byte, then the
 * result or the name of what is wrong. A session answers so for each response, with its length in two bytes before. */
size_t call(engine *e, const uint8_t *data, size_t length, uint8_t *answer);

#endif
