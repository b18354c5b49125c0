// Worker threads that run chunks of a job. The calling thread works too. It does all chunks alone while another caller
// uses the workers, and in a forked child, where the workers do not exist.
#pragma once

#include <cstddef>
#include <memory>
#include <mutex>

namespace hadakv {

class ThreadPool {
public:
    using Task = void (*)(void* context, std::size_t chunk);

    // threads: number of threads that work on a call, including the caller.
    explicit ThreadPool(int threads);
    ~ThreadPool();
    ThreadPool(const ThreadPool&) = delete;
    ThreadPool& operator=(const ThreadPool&) = delete;

    int threads() const { return threads_; }

    // Calls task(context, chunk) once for each chunk in [0, chunks). Returns when all chunks are done.
    void run(Task task, void* context, std::size_t chunks);

private:
    struct State;
    static void work(const std::shared_ptr<State>& state);
    void start_workers();

    int threads_;
    bool started_ = false;
    std::mutex caller_;  // the caller that holds it uses the workers
    std::shared_ptr<State> state_;
};

}  // namespace hadakv
