// Browsers do not let pages that are opened from disk start workers. The search runs its script in a hidden frame there.
if (location.protocol === "file:") {
  window.Worker = class {
    constructor(url) {
      this.frame = document.createElement("iframe")
      this.frame.hidden = true
      document.documentElement.append(this.frame)
      const inner = this.frame.contentWindow
      inner.document.write("<!doctype html><title>search</title>")
      inner.document.close()
      inner.postMessage = data => this.onmessage?.({ data })
      this.ready = new Promise((resolve, reject) => {
        const script = inner.document.createElement("script")
        Object.assign(script, { src: url, onload: resolve, onerror: reject })
        inner.document.head.append(script)
      })
      this.ready.catch(() => this.onerror?.(new Event("error")))
    }

    postMessage(data) {
      this.ready.then(() => this.frame.contentWindow?.onmessage({ data }), () => {})
    }

    terminate() {
      this.frame.remove()
    }
  }
}
