/* Runs each file that is named through the fuzz target once: for compilers without libFuzzer. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size);

/* Run one file in memory of exactly its size, so that a sanitizer sees every byte too far. */
static int replay(const char *path) {
    FILE *file = fopen(path, "rb");
    if (file == NULL || fseek(file, 0, SEEK_END) != 0) {
        perror(path);
        return -1;
    }
    long size = ftell(file);
    rewind(file);
    uint8_t *input = malloc(size > 0 ? (size_t)size : 1);
    size_t num_read = input == NULL ? 0 : fread(input, 1, (size_t)size, file);
    fclose(file);
    if (input != NULL) LLVMFuzzerTestOneInput(input, num_read);
    free(input);
    return 0;
}

int main(int argc, char **argv) {
    for (int i = 1; i < argc; i++)
        if (replay(argv[i]) != 0) return 2;
    printf("%d inputs, nothing found\n", argc - 1);
    return 0;
}
