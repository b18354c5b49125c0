// Worker threads that wait for chunks of work. The caller always works too, and finishes alone where it has to: while
// another caller has the workers, or in a forked child, where they do not exist.
#pragma once

#include <cstddef>
#include <memory>
#include <mutex>

namespace hadakv {

class Pool {
public:
    using Task = void (*)(void* context, std::size_t chunk);

    // threads: all that work on a call, the caller included.
    explicit Pool(int threads);
    ~Pool();
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    int threads() const { return threads_; }

    // Calls task(context, chunk) once for each chunk in [0, chunks) and returns when all are done.
    void run(Task task, void* context, std::size_t chunks);

private:
    struct State;
    static void work(const std::shared_ptr<State>& state);
    void start_workers();

    int threads_;
    bool started_ = false;
    std::mutex caller_;  // whoever holds it has the workers
    std::shared_ptr<State> state_;
};

}  // namespace hadakv
