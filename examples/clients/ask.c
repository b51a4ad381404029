/* Asks an Orinoco node with libmosquitto:  ask HOST PORT NODE USER "QUESTION"
 *
 *   apt install libmosquitto-dev && cc -O2 -Wall -o ask ask.c -lmosquitto
 *
 * Bare text (op text-stream): no JSON needed. Pieces are printed as they come, an empty message is the end, one
 * that starts with "!" is an error. Where the broker wants one, the password is in ORINOCO_PASSWORD.
 */
#include <mosquitto.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static char request_topic[512], response_topic[512];
static const char *question;
static int outcome = -1; /* -1: not over; else the exit code */

static void on_connect(struct mosquitto *client, void *context, int code)
{
    (void)context;
    if (code != 0) {
        fprintf(stderr, "the broker refused: %s\n", mosquitto_connack_string(code));
        outcome = 1;
        return;
    }
    mosquitto_subscribe(client, NULL, response_topic, 1);
}

/* Listen first, then ask. Asked again after a lost connection it is still one request, by its id. */
static void on_subscribe(struct mosquitto *client, void *context, int mid, int count, const int *granted)
{
    (void)context, (void)mid;
    if (count < 1 || granted[0] > 2) {
        fprintf(stderr, "the broker does not let this user listen\n");
        outcome = 1;
        return;
    }
    mosquitto_publish(client, NULL, request_topic, (int)strlen(question), question, 1, false);
}

static void on_message(struct mosquitto *client, void *context, const struct mosquitto_message *message)
{
    const char *bytes = message->payload;
    (void)client, (void)context;
    if (message->payloadlen == 0) {
        putchar('\n');
        outcome = 0;
    } else if (bytes[0] == '!') {
        fprintf(stderr, "%.*s\n", message->payloadlen, bytes);
        outcome = 1;
    } else {
        fwrite(bytes, 1, (size_t)message->payloadlen, stdout);
        fflush(stdout);
    }
}

/* New for each question: a repeated id gets the old answer. */
static int new_id(char *id, size_t size)
{
    unsigned char bytes[12];
    FILE *random = fopen("/dev/urandom", "rb");
    size_t i, n = random ? fread(bytes, 1, sizeof bytes, random) : 0;
    if (random)
        fclose(random);
    if (n != sizeof bytes || size < 2 * sizeof bytes + 1)
        return 0;
    for (i = 0; i < sizeof bytes; i++)
        snprintf(id + 2 * i, 3, "%02x", bytes[i]);
    return 1;
}

int main(int argc, char **argv)
{
    const char *password = getenv("ORINOCO_PASSWORD");
    struct mosquitto *client;
    time_t give_up_at = time(NULL) + 120;
    char id[25];
    int code;

    if (argc != 6) {
        fprintf(stderr, "usage: ask HOST PORT NODE USER \"QUESTION\"\n");
        return 64;
    }
    if (!new_id(id, sizeof id)) {
        fprintf(stderr, "no random bytes\n");
        return 1;
    }
    question = argv[5];
    snprintf(request_topic, sizeof request_topic, "orinoco/v1/%s/req/%s/text-stream/%s", argv[3], argv[4], id);
    snprintf(response_topic, sizeof response_topic, "orinoco/v1/resp/%s/%s", argv[4], id);

    mosquitto_lib_init();
    client = mosquitto_new(NULL, true, NULL);
    if (client == NULL)
        return 1;
    if (password != NULL)
        mosquitto_username_pw_set(client, argv[4], password);
    mosquitto_connect_callback_set(client, on_connect);
    mosquitto_subscribe_callback_set(client, on_subscribe);
    mosquitto_message_callback_set(client, on_message);
    code = mosquitto_connect(client, argv[1], atoi(argv[2]), 30);
    while (code == MOSQ_ERR_SUCCESS && outcome < 0 && time(NULL) < give_up_at) {
        code = mosquitto_loop(client, 500, 1);
        if (code == MOSQ_ERR_CONN_LOST || code == MOSQ_ERR_NO_CONN)
            code = mosquitto_reconnect(client);
    }
    if (code != MOSQ_ERR_SUCCESS)
        fprintf(stderr, "%s\n", mosquitto_strerror(code));
    else if (outcome < 0)
        fprintf(stderr, "no whole answer within 120 s\n");
    mosquitto_disconnect(client);
    mosquitto_destroy(client);
    mosquitto_lib_cleanup();
    return outcome < 0 ? 1 : outcome;
}
