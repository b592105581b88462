package main

import (
	"bytes"
	"context"
	"net"
	"time"
)

const (
	parcelBytes = 32 << 10
	inFlight    = 1024 // parcels that are on the way in one direction
)

// distant returns a dialer of connections on which every byte is on its way for a
// time, in both directions, and which take a round trip to be made.
func distant(oneWay time.Duration) func(ctx context.Context, network, address string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		select {
		case <-time.After(2 * oneWay):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		there, err := (&net.Dialer{}).DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}
		here, between := net.Pipe()
		go carry(there, between, oneWay)
		go carry(between, there, oneWay)
		return here, nil
	}
}

// parcel is bytes that arrive at a moment.
type parcel struct {
	bytes []byte
	due   time.Time
}

// carry brings what is read from one connection to another, late, until one of
// them is closed, and closes both.
func carry(to, from net.Conn, oneWay time.Duration) {
	parcels := make(chan parcel, inFlight)
	go func() {
		defer close(parcels)
		buf := make([]byte, parcelBytes)
		for {
			n, err := from.Read(buf)
			if n > 0 {
				parcels <- parcel{bytes.Clone(buf[:n]), time.Now().Add(oneWay)}
			}
			if err != nil {
				return
			}
		}
	}()
	broken := false
	for p := range parcels {
		time.Sleep(time.Until(p.due))
		if broken {
			continue
		}
		if _, err := to.Write(p.bytes); err != nil {
			broken = true
			_ = from.Close() // ends the reading
		}
	}
	_ = to.Close() // as the other side was
	_ = from.Close()
}
