/* The APDU path without Python: delivery scripts for many SIMs, and the responses to them, through libcrypto's EVP.
 *
 * It does what apdu/scp03.py and apdu/script.py say, byte for byte; these are the specification. An engine belongs to
 * one thread at a time and keeps nothing between calls but its contexts; `engine_wipe` clears what keys left in them.
 * Every size is checked before anything is written: a refusal names what is wrong (`engine_problem`).
 */
#ifndef APPLIANCE_APDU_CORE_H
#define APPLIANCE_APDU_CORE_H

#include <stddef.h>
#include <stdint.h>

enum {
    BLOCK = 16,
    MAX_KEY = 32,
    MAX_AID = 16,
    KDD_LENGTH = 10,
    KCV_LENGTH = 3,
    MAX_RESPONSE = 256 + 2,
    MAX_SEQUENCE_COUNTER = 0xFFFFFF,
};

typedef struct engine engine;

typedef struct {
    const uint8_t *data;
    size_t length;
} span;

/* What is wrong. The order is that in which the specification looks. */
typedef enum {
    ENGINE_OK,
    ENGINE_ENC_KEY,
    ENGINE_MAC_KEY,
    ENGINE_KEY_TYPE,
    ENGINE_MODE,
    ENGINE_SEQUENCE_COUNTER,
    ENGINE_SSD_AID,
    ENGINE_APPLET_AID,
    ENGINE_KVN,
    ENGINE_PACKAGE,
    ENGINE_LEVEL,
    ENGINE_HOST_CHALLENGE,
    ENGINE_CARD_CHALLENGE,
    ENGINE_CARD_CRYPTOGRAM,
    ENGINE_COMMAND,
    ENGINE_RESPONSE_LENGTH,
    ENGINE_RESPONSE_DATA,
    ENGINE_R_MAC_MISSING,
    ENGINE_R_MAC,
    ENGINE_R_ENC_LENGTH,
    ENGINE_R_ENC_PADDING,
    ENGINE_KEY,
    ENGINE_BITS,
    ENGINE_KDD,
    ENGINE_LIBCRYPTO,
    ENGINE_ERRORS,
} engine_error;

typedef enum {
    FORM_COMMANDS,            /* field `commands` of FetchScriptResponse (delivery.proto), protobuf wire format */
    FORM_TEXT,                /* one APDU in hex a line, as scriptor plays it */
    FORM_EXPANDED_DEFINITE,   /* field `remote_scripts`: ETSI TS 102 226, 5.2, templates AA */
    FORM_EXPANDED_INDEFINITE, /* likewise, templates AE */
    FORMS,
} script_form;

/* What many SIMs have in common. */
typedef struct {
    span ssd_aid, applet_aid; /* 5..16 bytes */
    int kvn;                  /* of the channel's key set, 01..7F */
    int level;                /* 01, 03, 11, 13, 33 */
    int mode;                 /* 8 (S8) or 16 (S16) */
    int key_type;             /* 1 RSA-2048, 2 P-256, 3 P-384: how many parts the receipt has */
} script_route;

/* One script. `enc` and `mac` are S-ENC and S-MAC, or, where `from_static`, K-ENC and K-MAC; the card's challenge is
 * given, or, where its data is NULL and `from_static`, follows from the sequence counter. */
typedef struct {
    script_route route;
    span package, host_challenge, card_challenge;
    int64_t sequence_counter;
    span enc, mac;
    int from_static;
} script_order;

/* A session whose script was rendered earlier: zeroed, then filled up to `mode`. */
typedef struct {
    span s_enc, s_mac, s_rmac;
    int level, mode;
    uint8_t chain[BLOCK];
    uint32_t counter;
} channel;

/* NULL where libcrypto has no memory or no AES. */
engine *engine_new(void);
void engine_free(engine *e);
void engine_wipe(engine *e);

/* The name of what is wrong, as a rule that of a field; "" for ENGINE_OK and ENGINE_LIBCRYPTO. */
const char *engine_problem(engine_error error);

/* The size of a script in bytes, after every check of the order. */
engine_error script_size(const script_order *order, script_form form, size_t *size);
/* Renders into `out`, which has the size that `script_size` gave for the same order and form. */
engine_error script_render(engine *e, const script_order *order, script_form form, uint8_t *out);

/* SCP03 (GPC Amendment D): 6.2.2.1 the pseudo-random challenge, `mode` bytes; 6.2.1 session keys, as long as k_enc;
 * 6.2.2.2 the card's cryptogram, compared in constant time. */
engine_error engine_card_challenge(engine *e, span k_enc, int64_t sequence_counter, span aid, int mode, uint8_t *out);
engine_error engine_session_keys(engine *e, span k_enc, span k_mac, span host_challenge, span card_challenge,
                                 uint8_t *s_enc, uint8_t *s_mac, uint8_t *s_rmac);
engine_error engine_verify_card_cryptogram(engine *e, span s_mac, span host_challenge, span card_challenge,
                                           span cryptogram);

/* The channel as a follower: EXTERNAL AUTHENTICATE, then each wrapped command and what the card answered it. The plain
 * response, data and status word, is at most as long as the response. */
engine_error channel_open(engine *e, channel *c, span external_authenticate);
engine_error channel_follow(engine *e, channel *c, span command);
engine_error channel_unwrap(engine *e, const channel *c, span response, uint8_t *out, size_t *length);

/* The static key that `master` gives a SIM (sim-package.md, Keys), bits / 8 bytes; and a key check value. */
engine_error engine_kdf3(engine *e, span master, int constant, span kdd, int bits, uint8_t *out);
engine_error engine_kcv(engine *e, span key, uint8_t out[KCV_LENGTH]);

#endif
