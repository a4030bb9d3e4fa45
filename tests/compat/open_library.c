/* SPDX-License-Identifier: Apache-2.0 */
/* Opens the native library and prints what it says of itself: open LIBRARY. */
#include <dlfcn.h>
#include <stdio.h>

int main(int count, char** arguments) {
  static const char* const kNames[] = {"RegisterCustomOps", "CreateEpFactories",
                                       "ReleaseEpFactory", "RimcProgramCells"};
  void* library = count == 2 ? dlopen(arguments[1], RTLD_NOW | RTLD_LOCAL) : NULL;
  if (library == NULL) {
    fprintf(stderr, "%s\n", count == 2 ? dlerror() : "usage: open LIBRARY");
    return 1;
  }
  for (size_t i = 0; i < sizeof kNames / sizeof *kNames; ++i) {
    if (dlsym(library, kNames[i]) == NULL) {
      fprintf(stderr, "%s is missing\n", kNames[i]);
      return 1;
    }
  }
  const char* (*info)(void) = (const char* (*)(void))dlsym(library, "RimcBuildInfo");
  if (info == NULL) return 1;
  puts(info());
  return 0;
}
