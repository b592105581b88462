package rest

import (
	"net/http"
	"time"
)

// The bounds of connections. A request that carries or awaits much data extends
// readTimeout and writeTimeout for itself as long as the data flows.
const (
	readHeaderTimeout = 10 * time.Second
	readTimeout       = 60 * time.Second
	writeTimeout      = 60 * time.Second
	idleTimeout       = 2 * time.Minute
	// maxHeaderBytes leaves room for a key of 512 bytes, each percent-encoded, a
	// cursor, and the headers of every client.
	maxHeaderBytes = 32 << 10
)

// HTTPServer returns an http.Server for handler with bounds on what a client can
// hold and for how long. The caller sets the rest and runs it.
func HTTPServer(handler http.Handler) *http.Server {
	return &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: readHeaderTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
	}
}
