package egress_test

import (
	"io"
	"net"
	"strings"
	"testing"
)

func TestSockets(t *testing.T) {
	w := start(t, nil)
	echo := listen(t, func(c net.Conn) { _, _ = io.Copy(c, c); _ = c.Close() })
	w.want(step{"op": "socket", "address": "here.test:" + echo, "send": "hello", "want": 5}, `{"value":"hello"}`)
	w.want(step{"op": "socket", "address": "here.test:" + echo, "send": "hello", "want": 100, "half": true, "options": step{"allowHalfOpen": true}}, `{"value":"hello<end>"}`)
	const refused = "Error: proxy request failed, cannot connect to the specified address"
	for _, address := range []string{"127.0.0.1:" + echo, "here.test:25", "169.254.169.254:80", "[::ffff:127.0.0.1]:" + echo} {
		if got := w.do(step{"op": "socket", "address": address, "send": "hello", "want": 5}); !strings.Contains(got, refused) {
			t.Errorf("%s: %s", address, got)
		}
	}
	if n := w.server.Stats().Denied; n != 4 {
		t.Errorf("%d were denied", n)
	}
	if got := w.do(step{"op": "socket", "address": "nowhere.test:80", "send": "hello", "want": 5}); !strings.Contains(got, refused) {
		t.Error(got)
	}
}
