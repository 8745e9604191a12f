"""Plain loops; the queue is sorted anew at each arrival; a number says how far one may still go; blocks are freed before the lists change."""


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
        seats = self.config.max_num_seqs - len(self.running)
        enough = seats > 0 and tokens_left >= request.num_prompt_tokens
        if enough and self.block_manager.allocate(request.request_id, request.num_prompt_tokens + request.params.max_tokens):
            request.status = RequestStatus.RUNNING
            self.waiting = [one for one in self.waiting if one is not request]
            self.running = [*self.running, request]
            blocks = list(self.block_manager.block_table(request.request_id))
            return ScheduledChunk(request, 0, list(request.prompt_token_ids), blocks, True)
        return None

    def decodes(self):
        chunks = []
        for request in self.running:
            table = list(self.block_manager.block_table(request.request_id))
            chunks.append(ScheduledChunk(request, request.num_tokens - 1, [request.output_token_ids[-1]], table, True))
        return chunks

    def update(self, batch, result):
        updates = []
        for chunk in batch.chunks:
            request = chunk.request
            if any(one is request for one in self.running):
                (token,) = result.token_ids[request.request_id]
                request.num_computed_tokens += chunk.num_tokens
                request.output_token_ids.append(token)
                updates.append(RequestUpdate(request, [token], result.logprobs.get(request.request_id)))
                if why := reason_to_end(request):
                    self.end(request, why)
        return updates

    def end(self, request, reason):
        self.block_manager.free(request.request_id)
        self.waiting = [one for one in self.waiting if one is not request]
        self.running = [one for one in self.running if one is not request]
        request.finish_reason = reason
        request.status = RequestStatus.FINISHED

    def finish(self, stopped):
        for stop in stopped:
            here = {request.request_id: request for request in self.waiting + self.running}
            if stop.request_id in here:
                request = here[stop.request_id]
                request.stop_reason = stop.stop_reason
                if stop.num_output_tokens is not None:
                    request.output_token_ids = request.output_token_ids[: stop.num_output_tokens]
                self.end(request, stop.finish_reason)

    def abort(self, request_id):
        self.finish([StoppedRequest(request_id, "abort")])

    def add(self, request):
        request.priority = request.priority if self.config.policy == "priority" else 0
        self.waiting.append(request)
        self.waiting.sort(key=lambda one: (one.priority, one.arrival_number))

    def admissions(self, tokens_left):
        chunks, left_over, may_pass = [], [], float("inf")
        for request in self.waiting[:]:
            if may_pass <= 0:
                break
            chunk = self.admit(request, tokens_left)
            if chunk:
                chunks.append(chunk)
                tokens_left -= request.num_prompt_tokens
                may_pass -= 1
                for one in left_over:
                    self.overtaken[one.request_id] = self.overtaken.get(one.request_id, 0) + 1
            else:
                left_over.append(request)
                may_pass = min(may_pass, self.max_overtaken - self.overtaken.get(request.request_id, 0))
        return chunks
