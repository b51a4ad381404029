// Copy to settings.h. `local` is who has no credentials, which only works on the broker's own machine.
#define WIFI_NAME "plant"
#define WIFI_PASSWORD "secret"
#define MQTT_HOST "192.168.1.20"
#define MQTT_PORT 1883
#define MQTT_USER "esp32-7"
#define MQTT_PASSWORD "secret"
#define ORINOCO_NODE "press-7"
#define ORINOCO_USER MQTT_USER
