// What both programs that fuzz the kernels need.

static void wrong(const char *what) {
  printf("wrong: %s\n", what);
  exit(1);
}

static float odd_float(void) {
  static const uint32_t bits[] = {0x7fc00000, 0x7f800000, 0xff800000, 0x7f7fffff, 0xff7fffff, 0x00000001,
                                  0x80000000, 0x7fffffff, 0xffc12345, 0x3f800000, 0x42b00000, 0x5f000000};
  float value;
  memcpy(&value, &bits[draw(sizeof bits / sizeof *bits)], sizeof value);
  return value;
}
