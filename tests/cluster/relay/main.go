// Command relay passes TCP connections on, late and slowly if asked to, and
// ends them on demand: a long or narrow path between two ends on one machine.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"
)

const usage = `Usage: relay --listen ADDRESS --to ADDRESS [options]

Passes every TCP connection made to --listen on to --to.

  --listen HOST:PORT   where to listen; port 0 picks a free one
  --to HOST:PORT       where to connect
  --delay DURATION     how late every byte arrives, each way (25ms makes a round
                       trip 50 ms longer)
  --rate MBIT          at most this many megabits per second, each way, for each
                       connection
  --kill-after MS      reset every connection this many milliseconds after it began

Prints one line, 'listening on HOST:PORT', once it accepts connections.
SIGUSR1 resets all connections at once; SIGTERM and SIGINT end the relay.
`

// window is how many bytes may be under way in each direction: the product of
// 1 Gbit/s and half a second.
const window = 64 << 20

const chunkSize = 64 << 10

func main() {
	flags := flag.NewFlagSet("relay", flag.ContinueOnError)
	flags.Usage = func() { fmt.Fprint(os.Stderr, usage) }
	listen := flags.String("listen", "", "")
	to := flags.String("to", "", "")
	delay := flags.Duration("delay", 0, "")
	rate := flags.Float64("rate", 0, "")
	killAfter := flags.Int("kill-after", 0, "")
	if err := flags.Parse(os.Args[1:]); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return
		}
		os.Exit(2)
	}
	if *listen == "" || *to == "" || *delay < 0 || *rate < 0 || *killAfter < 0 || flags.NArg() > 0 {
		fmt.Fprintln(os.Stderr, "relay: --listen and --to are needed, and no number may be negative; try: relay --help")
		os.Exit(2)
	}
	listener, err := net.Listen("tcp", *listen)
	if err != nil {
		fmt.Fprintln(os.Stderr, "relay:", err)
		os.Exit(1)
	}
	r := &relay{
		to: *to, delay: *delay, bytesPerSecond: *rate * 1e6 / 8,
		killAfter: time.Duration(*killAfter) * time.Millisecond,
		open:      map[*connection]struct{}{},
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGUSR1, syscall.SIGTERM, syscall.SIGINT)
	go func() {
		for s := range signals {
			n := r.resetAll()
			if s != syscall.SIGUSR1 {
				os.Exit(0)
			}
			fmt.Println("reset", n, "connections")
		}
	}()
	fmt.Println("listening on", listener.Addr())
	for {
		client, err := listener.Accept()
		if err != nil {
			fmt.Fprintln(os.Stderr, "relay:", err)
			time.Sleep(100 * time.Millisecond)
			continue
		}
		go r.serve(client.(*net.TCPConn))
	}
}

type relay struct {
	to             string
	delay          time.Duration
	bytesPerSecond float64
	killAfter      time.Duration

	mu   sync.Mutex
	open map[*connection]struct{}
}

type connection struct {
	client, server *net.TCPConn
	once           sync.Once
}

// reset ends both halves the hard way, as a path that breaks does.
func (c *connection) reset() {
	c.once.Do(func() {
		c.client.SetLinger(0)
		c.server.SetLinger(0)
		c.client.Close()
		c.server.Close()
	})
}

func (c *connection) close() {
	c.once.Do(func() {
		c.client.Close()
		c.server.Close()
	})
}

func (r *relay) resetAll() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	for c := range r.open {
		c.reset()
	}
	return len(r.open)
}

func (r *relay) serve(client *net.TCPConn) {
	time.Sleep(2 * r.delay) // the handshake has to travel as well
	server, err := net.DialTimeout("tcp", r.to, 10*time.Second)
	if err != nil {
		client.SetLinger(0)
		client.Close()
		return
	}
	c := &connection{client: client, server: server.(*net.TCPConn)}
	r.mu.Lock()
	r.open[c] = struct{}{}
	r.mu.Unlock()
	defer func() {
		c.close()
		r.mu.Lock()
		delete(r.open, c)
		r.mu.Unlock()
	}()
	if r.killAfter > 0 {
		defer time.AfterFunc(r.killAfter, c.reset).Stop()
	}
	var both sync.WaitGroup
	both.Add(2)
	go func() { defer both.Done(); r.pump(c, c.client, c.server) }()
	go func() { defer both.Done(); r.pump(c, c.server, c.client) }()
	both.Wait()
}

type chunk struct {
	data []byte
	due  time.Time
}

// pump carries one direction. Reading and writing are apart, so that bytes on
// their way do not keep later ones from setting out.
func (r *relay) pump(c *connection, from, to *net.TCPConn) {
	chunks := make(chan chunk, window/chunkSize)
	go func() {
		defer close(chunks)
		for {
			buffer := make([]byte, chunkSize)
			n, err := from.Read(buffer)
			now := time.Now()
			if n > 0 {
				chunks <- chunk{buffer[:n], now.Add(r.delay)}
			}
			if err == io.EOF {
				chunks <- chunk{nil, now.Add(r.delay)}
				return
			}
			if err != nil {
				time.Sleep(r.delay)
				c.reset()
				return
			}
		}
	}()
	// Runs until the reader is done, so that the reader never blocks for good.
	var free time.Time
	for piece := range chunks {
		if wait := time.Until(piece.due); wait > 0 {
			time.Sleep(wait)
		}
		if piece.data == nil {
			to.CloseWrite()
			continue
		}
		if r.bytesPerSecond > 0 {
			now := time.Now()
			if free.Before(now) {
				free = now
			}
			free = free.Add(time.Duration(float64(len(piece.data)) / r.bytesPerSecond * float64(time.Second)))
			time.Sleep(time.Until(free))
		}
		if _, err := to.Write(piece.data); err != nil {
			c.reset()
		}
	}
}
