// llama_get_memory_breakdown (llama-ext.h) returns a std::map; this copies it into plain structs.
#include "llama-ext.h"
#include "ggml-backend.h"

#include <cstddef>

struct orinoco_buffer_use {
    const char * name; // owned by ggml, lives as long as the process
    size_t model;
    size_t context;
    size_t compute;
    int host;
};

// Fills at most cap entries and returns how many buffer types there are, -1 when llama.cpp threw.
extern "C" int orinoco_memory_breakdown(const struct llama_context * ctx, orinoco_buffer_use * out, int cap) {
    try {
        int n = 0;
        for (const auto & [buft, use] : llama_get_memory_breakdown(ctx)) {
            if (n < cap) {
                out[n] = { ggml_backend_buft_name(buft), use.model, use.context, use.compute, ggml_backend_buft_is_host(buft) ? 1 : 0 };
            }
            n++;
        }
        return n;
    } catch (...) {
        return -1;
    }
}
