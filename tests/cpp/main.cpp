#include "check.h"

int main() { return fastseq::testing::run_all(); }
