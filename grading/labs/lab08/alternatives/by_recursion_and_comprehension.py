"""Admissions choose the next by asking anew after each one; decodes and updates are comprehensions; finish() goes by id, in two passes."""


def step(scheduler, executor, output_processor):
    updates = scheduler.update(batch := scheduler.schedule(), executor.execute(batch))
    shown, ended = output_processor.process(updates)
    scheduler.finish(ended)
    return shown


class Scheduler:
    """As the solution's, with other means."""

    def __init__(self, config, block_manager, max_overtaken=0):
        self.config = config
        self.block_manager = block_manager
        self.max_overtaken = max_overtaken
        self.waiting = []
        self.running = []
        self.overtaken = {}

    def schedule(self):
        decodes = self.decodes()
        return ScheduledBatch([*decodes, *self.admissions(self.config.max_num_batched_tokens - len(decodes))])

    def admit(self, request, tokens_left):
        if len(self.running) + 1 > self.config.max_num_seqs:
            return None
        if tokens_left - request.num_tokens < 0:
            return None
        if self.block_manager.allocate(request.request_id, request.max_total_tokens) is False:
            return None
        place = next(i for i, one in enumerate(self.waiting) if one is request)
        self.running.append(self.waiting.pop(place))
        self.running[-1].status = RequestStatus.RUNNING
        return ScheduledChunk.of(request, 0, request.num_prompt_tokens, self.block_manager.block_table(request.request_id))

    def decodes(self):
        return [self._next(request) for request in self.running]

    def _next(self, request):
        table = self.block_manager.block_table(request.request_id)
        return ScheduledChunk.of(request, request.num_computed_tokens, request.num_uncomputed_tokens, table)

    def update(self, batch, result):
        alive = [chunk for chunk in batch.chunks if chunk.request.status is RequestStatus.RUNNING]
        for chunk in alive:
            chunk.request.output_token_ids += result.token_ids[chunk.request.request_id]
            chunk.request.num_computed_tokens = chunk.request.num_tokens - 1
        for chunk in alive:
            reason = reason_to_end(chunk.request)
            if reason:
                self.end(chunk.request, reason)
        ids = [(chunk.request, chunk.request.request_id) for chunk in alive]
        return [RequestUpdate(request, result.token_ids[name], result.logprobs.get(name)) for request, name in ids]

    def end(self, request, reason):
        for queue in (self.waiting, self.running):
            if request in queue:
                queue.remove(request)
        request.status, request.finish_reason = RequestStatus.FINISHED, reason
        self.block_manager.free(request.request_id)

    def finish(self, stopped):
        by_id = {stop.request_id: stop for stop in stopped}
        for request in [one for one in self.waiting + self.running if one.request_id in by_id]:
            stop = by_id[request.request_id]
            request.stop_reason = stop.stop_reason
            count = stop.num_output_tokens
            request.output_token_ids[:] = request.output_token_ids if count is None else request.output_token_ids[:count]
            self.end(request, stop.finish_reason)

    def abort(self, request_id):
        self.finish([StoppedRequest(request_id, "abort")])

    def add(self, request):
        if self.config.policy != "priority":
            request.priority = 0
        place = sum(one.order < request.order for one in self.waiting)
        self.waiting.insert(place, request)

    def admissions(self, tokens_left, skip=()):
        for request in self.waiting:
            if request in skip:
                continue
            if any(self.overtaken.get(one.request_id, 0) == self.max_overtaken for one in skip):
                return []
            chunk = self.admit(request, tokens_left)
            if chunk is None:
                return self.admissions(tokens_left, (*skip, request))
            self.overtaken.update({one.request_id: self.overtaken.get(one.request_id, 0) + 1 for one in skip})
            return [chunk, *self.admissions(tokens_left - chunk.num_tokens, skip)]
        return []
