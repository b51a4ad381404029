// The calls of PubSubClient 2.8 that the sketch makes, over libmosquitto, with its limits: QoS 0 out, messages that
// do not fit into the buffer are dropped.
#pragma once
#include <mosquitto.h>

#include "WiFi.h"

class PubSubClient {
 public:
  using Callback = void (*)(char *, uint8_t *, unsigned int);
  explicit PubSubClient(WiFiClient &) { mosquitto_lib_init(); }
  PubSubClient &setServer(const char *name, uint16_t number) { host = name, port = number; return *this; }
  PubSubClient &setCallback(Callback function) { callback = function; return *this; }
  bool setBufferSize(uint16_t n) { size = n; return true; }
  bool connected() { return isConnected; }
  bool connect(const char *id, const char *user, const char *password) {
    if (client == nullptr) {
      client = mosquitto_new(id, true, this);
      if (user != nullptr && *user != '\0') mosquitto_username_pw_set(client, user, password);
      mosquitto_connect_callback_set(client, [](mosquitto *, void *self, int code) { ((PubSubClient *)self)->isConnected = code == 0; });
      mosquitto_disconnect_callback_set(client, [](mosquitto *, void *self, int) { ((PubSubClient *)self)->isConnected = false; });
      mosquitto_message_callback_set(client, [](mosquitto *, void *self, const mosquitto_message *message) {
        auto *me = (PubSubClient *)self;
        if (strlen(message->topic) + (size_t)message->payloadlen + 8 > me->size) return;
        me->callback(message->topic, (uint8_t *)message->payload, (unsigned)message->payloadlen);
      });
    }
    if (mosquitto_connect(client, host, port, 15) != MOSQ_ERR_SUCCESS) return false;
    for (int n = 0; n < 50 && !isConnected; n++) mosquitto_loop(client, 100, 1);
    return isConnected;
  }
  bool subscribe(const char *topic, uint8_t qos) { return mosquitto_subscribe(client, nullptr, topic, qos) == MOSQ_ERR_SUCCESS; }
  bool publish(const char *topic, const char *payload) {
    if (strlen(topic) + strlen(payload) + 8 > size) return false;
    return mosquitto_publish(client, nullptr, topic, (int)strlen(payload), payload, 0, false) == MOSQ_ERR_SUCCESS;
  }
  bool loop() { return mosquitto_loop(client, 20, 1) == MOSQ_ERR_SUCCESS; }

 private:
  mosquitto *client = nullptr;
  const char *host = "";
  int port = 1883;
  size_t size = 256;
  bool isConnected = false;
  Callback callback = nullptr;
};
