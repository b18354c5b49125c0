#include "thread_pool.h"

#include <atomic>
#include <condition_variable>
#include <system_error>
#include <thread>

namespace hadakv {

struct ThreadPool::State {
    std::mutex mutex;
    std::condition_variable work_arrived;
    std::condition_variable workers_done;
    std::size_t job = 0;  // number of the job, so that a worker joins each job once
    int working = 0;      // number of workers in the current job
    bool stopping = false;

    Task task = nullptr;
    void* context = nullptr;
    std::size_t chunks = 0;
    std::atomic<std::size_t> next_chunk{0};

    void take_chunks() {
        for (std::size_t chunk; (chunk = next_chunk.fetch_add(1, std::memory_order_relaxed)) < chunks;)
            task(context, chunk);
    }
};

ThreadPool::ThreadPool(int threads) : threads_(threads), state_(std::make_shared<State>()) {}

ThreadPool::~ThreadPool() {
    // Workers are detached and share ownership of the state. Joining would hang in a forked child, which has none.
    const std::lock_guard lock(state_->mutex);
    state_->stopping = true;
    state_->work_arrived.notify_all();
}

void ThreadPool::work(const std::shared_ptr<State>& state) {
    std::unique_lock lock(state->mutex);
    std::size_t last_job = 0;
    while (true) {
        state->work_arrived.wait(lock, [&] { return state->stopping || (state->task && state->job != last_job); });
        if (state->stopping) return;
        last_job = state->job;
        ++state->working;
        lock.unlock();
        state->take_chunks();
        lock.lock();
        if (--state->working == 0) state->workers_done.notify_one();
    }
}

// Starts the workers on first use, so that a process that forks before it encodes has workers of its own.
void ThreadPool::start_workers() {
    if (started_) return;
    started_ = true;
    try {
        for (int i = 1; i < threads_; ++i) std::thread([state = state_] { work(state); }).detach();
    } catch (const std::system_error&) {
        // The system has no more threads. The workers started so far, or the caller alone, do the work.
    }
}

void ThreadPool::run(Task task, void* context, std::size_t chunks) {
    const std::unique_lock caller(caller_, std::try_to_lock);
    if (threads_ == 1 || chunks < 2 || !caller.owns_lock()) {
        for (std::size_t chunk = 0; chunk < chunks; ++chunk) task(context, chunk);
        return;
    }
    start_workers();
    State& state = *state_;
    {
        const std::lock_guard lock(state.mutex);
        state.task = task;
        state.context = context;
        state.chunks = chunks;
        state.next_chunk = 0;
        ++state.job;
    }
    for (std::size_t worker = 1; worker < chunks && worker < static_cast<std::size_t>(threads_); ++worker)
        state.work_arrived.notify_one();
    state.take_chunks();
    std::unique_lock lock(state.mutex);
    // Wait for workers inside the job: one may have taken a chunk but not yet read the task. Workers that wake up later
    // find no chunk left.
    state.workers_done.wait(lock, [&] { return state.working == 0; });
    state.task = nullptr;
}

}  // namespace hadakv
