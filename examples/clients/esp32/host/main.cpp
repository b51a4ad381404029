// Runs the sketch as its board would, for one question:  esp32 HOST PORT NODE USER "QUESTION"
#include "Arduino.h"

static const char *host, *node, *user;
static int port;
#define WIFI_NAME ""
#define WIFI_PASSWORD ""
#define MQTT_HOST host
#define MQTT_PORT port
#define MQTT_USER (getenv("ORINOCO_PASSWORD") ? user : "")
#define MQTT_PASSWORD getenv("ORINOCO_PASSWORD")
#define ORINOCO_NODE node
#define ORINOCO_USER user
#include "../esp32.ino"

int main(int argc, char **argv) {
  if (argc != 6) return 64;
  host = argv[1], port = atoi(argv[2]), node = argv[3], user = argv[4];
  setup();
  Serial.input = std::string(argv[5]) + "\n";
  do loop();
  while (isWaiting || Serial.available() > 0);
  return 0;
}
