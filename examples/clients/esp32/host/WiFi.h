#pragma once
#include "Arduino.h"
enum { WL_CONNECTED = 3 };
struct { void begin(const char *, const char *) {} int status() { return WL_CONNECTED; } } inline WiFi;
struct WiFiClient {};
