package main

import (
	"fmt"
	"sync"
	"time"

	"github.com/schollz/progressbar/v3"
)

// progress shows how far an import or export has come: a bar with rate and
// remaining time on a terminal, nothing elsewhere. All methods may be called at
// once; the zero progress shows nothing.
type progress struct {
	mu    sync.Mutex // guards the rest
	bar   *progressbar.ProgressBar
	what  string
	items int64
}

// progress begins to show; total is in bytes, -1 if it is not known.
func (m *Main) progress(what string, total int64) *progress {
	p := &progress{what: what}
	if !isTerminal(m.Stderr) {
		return p
	}
	p.bar = progressbar.NewOptions64(total,
		progressbar.OptionSetWriter(m.Stderr),
		progressbar.OptionSetDescription(what),
		progressbar.OptionShowBytes(true),
		progressbar.OptionUseIECUnits(true),
		progressbar.OptionSetPredictTime(true),
		progressbar.OptionSetElapsedTime(true),
		progressbar.OptionThrottle(100*time.Millisecond),
		progressbar.OptionFullWidth(),
		progressbar.OptionClearOnFinish(),
		progressbar.OptionSetRenderBlankState(true),
	)
	return p
}

func (p *progress) add(items, bytes int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.bar == nil {
		return
	}
	p.items += items
	p.bar.Describe(fmt.Sprintf("%s %s", p.what, plural(p.items, "record")))
	_ = p.bar.Add64(bytes) // what cannot be shown is no reason to stop
}

// end takes the bar away.
func (p *progress) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.bar != nil {
		_ = p.bar.Clear()
		_ = p.bar.Exit()
		p.bar = nil
	}
}
