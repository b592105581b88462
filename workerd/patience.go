package workerd

import (
	"io"
	"net/http"
	"time"
)

// extend gives the client time to take what is written next, however long the Worker
// took to say it. Where the server knows no deadlines there is none.
func (x *exchange) extend() {
	_ = http.NewResponseController(x.w).SetWriteDeadline(time.Now().Add(x.p.rt.opts.Pause))
}

// patient reads the body of a request as long as something comes.
type patient struct {
	x    *exchange
	door *http.ResponseController
}

func (x *exchange) patiently() io.Reader { return patient{x, http.NewResponseController(x.w)} }

// Read implements io.Reader.
func (p patient) Read(b []byte) (int, error) {
	_ = p.door.SetReadDeadline(time.Now().Add(p.x.p.rt.opts.Pause))
	if p.x.over.Load() { // what was set to end this must not be undone
		_ = p.door.SetReadDeadline(time.Unix(1, 0))
	}
	n, err := p.x.r.Body.Read(b)
	if err != nil && !p.x.over.Load() {
		_ = p.door.SetReadDeadline(time.Time{}) // the Worker may take its time
	}
	return n, err
}
