// SPDX-License-Identifier: MIT
/**
 * PamSocket: the browser's end of PAM's WebSocket. No dependencies.
 *
 *   const pam = new PamSocket({ userId, token: () => supabaseAccessToken(), onMessage: (message) => ... });
 *   pam.start();
 *   pam.send({ type: "chat", message: "hello" });
 *
 * It reconnects with full jitter (base 2 s, cap 20 s) or when the server said, resumes its session so that no message is lost,
 * doubled or out of order, notices a silent server, and polls over HTTP where WebSockets do not get through.
 *
 * Options: userId, token (text or a function, may be async), url (of the backend; default: this page's origin), onMessage(message),
 * onState(state, detail) with "connecting" | "open" | "polling" | "waiting" | "closed", onResync() (messages were missed: load the
 * state anew), queue (messages kept while there is no connection, 100), timing (see TIMING).
 */
(function (root) {
  "use strict";

  const TIMING = {
    base: 2000, // ms; the first reconnect comes within this time
    cap: 20000, // no later reconnect waits longer
    token: 15000, // a token that has not come by then will not come: a page that slept may wait for a promise that nothing settles
    upgrade: 2500, // a WebSocket that is not open by then does not get through
    watchdog: 45000, // two heartbeats and some: after this silence the server counts as gone
    poll: 40000, // the server answers a poll within 25 s; after this it counts as gone
    probe: 60000, // while polling: how often to try a WebSocket again
    stable: 5000, // a connection that lived this long starts the backoff anew
  };
  const UPGRADE_FAILURES = 2;
  const TERMINAL = new Set([1008, 4001, 4002, 4003]); // a new attempt would be refused for the same reason
  const REPLACED = 4409; // another tab of this user took over: come back only when this one is looked at
  const BUFFERED = 1 << 20;

  class PamSocket {
    constructor(options) {
      this.options = options;
      this.timing = Object.assign({}, TIMING, options.timing);
      this.state = "closed";
      this.session = "";
      this.lastSeq = 0;
      this.queue = [];
      this.attempt = 0;
      this.failures = 0;
      this.afterMs = null;
      this.socket = null; // the open WebSocket
      this.trial = null; // the one that is being opened
      this.polling = null; // AbortController while polling
      this.timers = {};
      this.wake = () => this.woken();
    }

    start() {
      if (this.running) return;
      this.running = true;
      this.attempt = this.failures = 0;
      root.addEventListener("online", this.wake);
      root.addEventListener("pageshow", this.wake);
      if (root.document) root.document.addEventListener("visibilitychange", this.wake);
      this.connect();
    }

    /** Ends it for good, or until start() is called again. */
    close(code, reason) {
      this.running = false;
      root.removeEventListener("online", this.wake);
      root.removeEventListener("pageshow", this.wake);
      if (root.document) root.document.removeEventListener("visibilitychange", this.wake);
      this.drop(code || 1000);
      this.enter("closed", reason || "");
    }

    /** True when the message was sent or will be; false when the queue is full. */
    send(message) {
      const text = typeof message === "string" ? message : JSON.stringify(message);
      if (this.socket && !this.queue.length && this.socket.bufferedAmount < BUFFERED) {
        this.socket.send(text);
        return true;
      }
      if (this.queue.length >= (this.options.queue || 100)) return false;
      this.queue.push(text);
      this.flush();
      return true;
    }

    // --- WebSocket ---------------------------------------------------------------------------------------------------------

    async connect() {
      this.stop("retry");
      if (!this.running || this.trial || this.socket) return;
      if (!this.polling) this.enter("connecting");
      const trial = (this.trial = {});
      let token;
      try {
        token = await this.token();
      } catch (error) {
        if (this.trial !== trial) return;
        this.trial = null;
        if (!this.polling) this.later("no token");
        return;
      }
      if (this.trial !== trial || !this.running) return;
      const query = new URLSearchParams({ token, session: this.session, last_seq: String(this.lastSeq) });
      const url = this.base().replace(/^http/, "ws") + "/api/v1/pam/ws/" + encodeURIComponent(this.options.userId) + "?" + query;
      let socket;
      try {
        socket = new WebSocket(url);
      } catch (error) {
        this.trial = null;
        this.upgradeFailed(true);
        return;
      }
      this.trial = socket;
      this.arm("upgrade", this.timing.upgrade, () => this.upgradeFailed(true));
      socket.onopen = () => {
        if (this.trial !== socket) return socket.close();
        this.stop("upgrade");
        this.trial = null;
        this.stopPolling();
        this.socket = socket;
        this.failures = 0;
        this.watch();
        this.arm("stable", this.timing.stable, () => (this.attempt = 0));
        this.enter("open");
        this.flush();
      };
      socket.onmessage = (event) => {
        if (this.socket !== socket) return;
        this.watch();
        this.take(event.data);
      };
      socket.onclose = (event) => {
        if (this.trial === socket) this.upgradeFailed(false);
        else if (this.socket === socket) this.lost(event.code, event.reason);
      };
    }

    /** The handshake was refused or, worse, not answered at all. */
    upgradeFailed(hung) {
      const trial = this.trial;
      this.trial = null;
      this.stop("upgrade");
      if (trial && trial.close) trial.close();
      if (!this.running || this.polling) return;
      this.failures += 1;
      if (hung || this.failures >= UPGRADE_FAILURES) this.poll();
      else this.later("refused");
    }

    lost(code, reason) {
      this.drop();
      if (TERMINAL.has(code)) this.close(code, reason || String(code));
      else if (code === REPLACED) this.enter("waiting", "replaced");
      else this.later(code);
    }

    /** Forgets the connections without waiting for anybody. */
    drop(code) {
      for (const name of Object.keys(this.timers)) this.stop(name);
      this.stopPolling();
      for (const socket of [this.socket, this.trial]) if (socket && socket.close) socket.close(code === 1000 ? 1000 : 3000);
      this.socket = this.trial = null;
    }

    /** Full jitter, so that many clients do not come back at once; or the moment that the server asked for. */
    later(detail) {
      if (!this.running) return;
      let delay = Math.random() * Math.min(this.timing.cap, this.timing.base * 2 ** this.attempt);
      this.attempt += 1;
      if (this.afterMs !== null) delay = this.afterMs;
      this.afterMs = null;
      this.enter("waiting", detail);
      this.arm("retry", delay, () => this.connect());
    }

    watch() {
      this.heard = Date.now();
      this.arm("watchdog", this.timing.watchdog, () => this.lost(1006, "silent"));
    }

    /** The page is looked at again, or the network is back: no need to wait any longer. */
    woken() {
      if (!this.running || (root.document && root.document.hidden)) return;
      if (this.socket && Date.now() - this.heard > this.timing.watchdog) this.lost(1006, "silent");
      else if (this.state === "waiting" || this.state === "polling") this.connect();
    }

    // --- messages ----------------------------------------------------------------------------------------------------------

    take(text) {
      let message;
      try {
        message = JSON.parse(text);
      } catch (error) {
        return; // binary, or not for us
      }
      const type = message && message.type;
      if (type === "ping") this.socket.send(JSON.stringify({ type: "pong", seq: message.seq }));
      else if (type === "reconnect" && message.after_ms >= 0) this.afterMs = Math.min(message.after_ms, 60000);
      else if ((type === "session" || type === "resync") && message.session) this.adopt(message, type === "resync");
      else this.deliver(message);
    }

    adopt(notice, resync) {
      if (resync || notice.session !== this.session) {
        this.session = notice.session;
        this.lastSeq = notice.seq;
      }
      if (resync && this.options.onResync) this.options.onResync();
    }

    deliver(message) {
      if (message && message._seq !== undefined) {
        if (message._seq <= this.lastSeq) return; // came over the poll already
        this.lastSeq = message._seq;
        delete message._seq;
      }
      if (this.options.onMessage) this.options.onMessage(message);
    }

    async flush() {
      if (this.posting) return; // the first message is on its way: sent here, too, it would arrive twice
      while (this.socket && this.queue.length && this.socket.bufferedAmount < BUFFERED) this.socket.send(this.queue.shift());
      if (this.socket && this.queue.length) return this.arm("flush", 100, () => this.flush());
      if (!this.polling || !this.session) return;
      this.posting = true;
      const limit = new AbortController();
      try {
        while (this.polling && this.queue.length) {
          const url = this.base() + "/api/v1/pam/poll?" + new URLSearchParams({ session: this.session });
          const timer = setTimeout(() => limit.abort(), this.timing.poll);
          const answer = await fetch(url, { method: "POST", body: this.queue[0], signal: limit.signal }).finally(() => clearTimeout(timer));
          if (answer.ok || answer.status === 400 || answer.status === 413) this.queue.shift();
          else break; // the next poll opens the session again, then this is tried again
        }
      } catch (error) {
        // the network: what is in the queue stays there
      } finally {
        this.posting = false;
        if (this.socket) this.flush();
      }
    }

    // --- long poll ---------------------------------------------------------------------------------------------------------

    async poll() {
      const polling = (this.polling = new AbortController());
      this.arm("probe", this.timing.probe, function probe() {
        this.connect();
        this.arm("probe", this.timing.probe, probe);
      });
      while (this.polling === polling) {
        let answer, page;
        try {
          const token = await this.token();
          const query = new URLSearchParams({ user_id: this.options.userId, session: this.session, last_seq: String(this.lastSeq) });
          const headers = { Authorization: "Bearer " + token };
          if (this.polling !== polling) return;
          this.arm("poll", this.timing.poll, () => polling.abort());
          answer = await fetch(this.base() + "/api/v1/pam/poll?" + query, { headers, signal: polling.signal, cache: "no-store" });
          page = await answer.json();
        } catch (error) {
          answer = null;
        }
        if (this.polling !== polling) return;
        if (answer && answer.ok) {
          this.enter("polling");
          this.attempt = 0;
          const seq = page.messages.length ? page.messages[0]._seq - 1 : page.seq;
          if (page.session !== this.session || page.resync) this.adopt({ session: page.session, seq }, page.resync);
          for (const message of page.messages) this.deliver(message);
          this.flush();
          if (page.after_ms === undefined) continue;
          this.afterMs = page.after_ms;
        } else if (answer && (answer.status === 401 || answer.status === 403)) {
          this.close(1000, "refused");
          return;
        } else if (page && page.after_ms >= 0) this.afterMs = Math.min(page.after_ms, 60000);
        // Neither way works: one try of the better one, then of this one, each time.
        this.drop();
        this.failures = UPGRADE_FAILURES - 1;
        this.later(answer ? answer.status : "unreachable");
      }
    }

    stopPolling() {
      if (this.polling) this.polling.abort();
      this.polling = null;
      this.stop("poll");
      this.stop("probe");
    }

    // --- small things ------------------------------------------------------------------------------------------------------

    base() {
      return (this.options.url || root.location.origin).replace(/\/$/, "");
    }

    async token() {
      if (typeof this.options.token !== "function") return this.options.token;
      let timer;
      const late = new Promise((_, reject) => (timer = setTimeout(() => reject(new Error("no token")), this.timing.token)));
      try {
        return await Promise.race([this.options.token(), late]);
      } finally {
        clearTimeout(timer);
      }
    }

    enter(state, detail) {
      if (state === this.state) return;
      this.state = state;
      if (this.options.onState) this.options.onState(state, detail);
    }

    arm(name, delay, action) {
      clearTimeout(this.timers[name]);
      this.timers[name] = setTimeout(() => {
        delete this.timers[name];
        action.call(this);
      }, delay);
    }

    stop(name) {
      clearTimeout(this.timers[name]);
      delete this.timers[name];
    }
  }

  if (typeof module === "object" && module.exports) module.exports = PamSocket;
  else root.PamSocket = PamSocket;
})(typeof globalThis === "object" ? globalThis : this);
