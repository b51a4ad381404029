// Asks an Orinoco node from an ESP32 (Arduino core, library PubSubClient 2.8): prints the answer on the serial line.
//
// Bare text (op text-stream) needs no JSON and about 2 KiB. Send a line on the serial monitor to ask.
// The pieces of an answer come on one topic; an empty piece is the end, one that starts with "!" an error.
#include <PubSubClient.h>
#include <WiFi.h>

#include "settings.h"  // copy settings.example.h and fill it in; it stays out of version control

WiFiClient network;
PubSubClient client(network);
char requestId[17];
String line;
bool isWaiting = false;
unsigned long askedAt = 0;

// An answer to an older question, which came late, has another id.
void onMessage(char *topic, uint8_t *payload, unsigned int length) {
  const char *id = strrchr(topic, '/');
  if (!isWaiting || id == nullptr || strcmp(id + 1, requestId) != 0) return;
  if (length == 0) {
    Serial.println();
    isWaiting = false;
  } else {
    Serial.write(payload, length);
    if (payload[0] == '!') {
      Serial.println();
      isWaiting = false;
    }
  }
}

void connect() {
  while (!client.connected()) {
    // The client id must differ between devices; the chip's own number does.
    char clientId[32];
    snprintf(clientId, sizeof clientId, "esp32-%08lx", (unsigned long)ESP.getEfuseMac());
    if (client.connect(clientId, MQTT_USER, MQTT_PASSWORD)) {
      char topic[96];
      snprintf(topic, sizeof topic, "orinoco/v1/resp/%s/+", ORINOCO_USER);
      client.subscribe(topic, 1);
    } else {
      Serial.println("no broker, trying again");
      delay(2000);
    }
  }
}

void ask(const String &question) {
  char topic[160];
  // A new id for each question: a counter would start again after a reset, and get an old answer.
  snprintf(requestId, sizeof requestId, "%08lx%08lx", (unsigned long)esp_random(), (unsigned long)esp_random());
  snprintf(topic, sizeof topic, "orinoco/v1/%s/req/%s/text-stream/%s", ORINOCO_NODE, ORINOCO_USER, requestId);
  // PubSubClient publishes with QoS 0, which the node takes as well; without an answer ask again.
  isWaiting = client.publish(topic, question.c_str());
  askedAt = millis();
  if (!isWaiting) Serial.println("question too long for the buffer, or no connection");
}

void setup() {
  Serial.begin(115200);
  WiFi.begin(WIFI_NAME, WIFI_PASSWORD);
  while (WiFi.status() != WL_CONNECTED) delay(250);
  client.setServer(MQTT_HOST, MQTT_PORT);
  client.setCallback(onMessage);
  client.setBufferSize(2048);  // a piece has at most 1024 bytes, and its topic
}

void loop() {
  connect();
  client.loop();
  while (Serial.available() > 0 && !isWaiting) {
    const char c = Serial.read();
    if (c != '\n') {
      line += c;
    } else if (line.length() > 0) {
      ask(line);
      line = "";
    }
  }
  if (isWaiting && millis() - askedAt > 120000UL) {
    Serial.println("no answer");
    isWaiting = false;
  }
}
