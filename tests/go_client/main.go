// A client of flowstate in Go, written from docs/flight.md alone.
//
// It reads one question per line from its standard input (JSON) and writes one answer per line (JSON); rows are base64 of an Arrow IPC stream.
// Usage: go_client grpc://host:port [bearer token]
package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/flight"
	"github.com/apache/arrow-go/v18/arrow/ipc"
	"github.com/apache/arrow-go/v18/arrow/memory"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

type question struct {
	Do       string          `json:"do"`
	Path     []string        `json:"path"`
	Command  map[string]any  `json:"command"`
	Job      string          `json:"job"`
	View     string          `json:"view"`
	Keys     json.RawMessage `json:"keys"`     // rows of the key columns
	Messages []message       `json:"messages"` // of an exchange
	Action   string          `json:"action"`
	Body     json.RawMessage `json:"body"`
}

type message struct {
	Keys     json.RawMessage `json:"keys"`
	Metadata map[string]any  `json:"metadata"`
}

// rows are a part of an answer: what one endpoint gave, or one message of an exchange.
type rows struct {
	IPC    string          `json:"ipc,omitempty"`
	Values json.RawMessage `json:"values,omitempty"`
	Answer json.RawMessage `json:"answer,omitempty"`
	Reply  json.RawMessage `json:"reply,omitempty"`
}

// refusal is an error as the page describes it.
type refusal struct {
	Code    string          `json:"code"`
	Message string          `json:"message"`
	Details json.RawMessage `json:"details,omitempty"`
}

func (r *refusal) Error() string { return r.Message }

// refused reads the details of an error from the trailing metadata of its call.
func refused(err error, trailer metadata.MD) error {
	if err == nil {
		return nil
	}
	found := &refusal{Code: status.Code(err).String(), Message: status.Convert(err).Message()}
	if details := trailer.Get("grpc-status-details-bin"); len(details) > 0 && json.Valid([]byte(details[0])) {
		found.Details = json.RawMessage(details[0])
	}
	return found
}

// client keeps a connection to every address that it has read from.
type client struct {
	first   string
	clients map[string]flight.Client
}

func (c *client) at(location string) (flight.Client, error) {
	if found := c.clients[location]; found != nil {
		return found, nil
	}
	_, address, _ := strings.Cut(location, "://")
	made, err := flight.NewClientWithMiddleware(
		address, nil, nil,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)),
	)
	if err == nil {
		c.clients[location] = made
	}
	return made, err
}

// of is the client for an endpoint: without a location, the service that was asked.
func (c *client) of(endpoint *flight.FlightEndpoint) (flight.Client, error) {
	if len(endpoint.GetLocation()) > 0 {
		return c.at(endpoint.GetLocation()[0].GetUri())
	}
	return c.at(c.first)
}

func (c *client) info(ctx context.Context, descriptor *flight.FlightDescriptor) (*flight.FlightInfo, error) {
	asked, err := c.at(c.first)
	if err != nil {
		return nil, err
	}
	var trailer metadata.MD
	info, err := asked.GetFlightInfo(ctx, descriptor, grpc.Trailer(&trailer))
	return info, refused(err, trailer)
}

func commanded(command map[string]any) *flight.FlightDescriptor {
	raw, _ := json.Marshal(command)
	return &flight.FlightDescriptor{Type: flight.DescriptorCMD, Cmd: raw}
}

func (c *client) list(ctx context.Context) (any, error) {
	asked, err := c.at(c.first)
	if err != nil {
		return nil, err
	}
	stream, err := asked.ListFlights(ctx, &flight.Criteria{})
	if err != nil {
		return nil, refused(err, nil)
	}
	found := []any{}
	for {
		info, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return found, nil
		}
		if err != nil {
			return nil, refused(err, stream.Trailer())
		}
		schema, err := flight.DeserializeSchema(info.GetSchema(), memory.DefaultAllocator)
		if err != nil {
			return nil, err
		}
		columns := map[string]string{}
		for _, field := range schema.Fields() {
			columns[field.Name] = field.Type.String()
		}
		found = append(found, map[string]any{
			"path": info.GetFlightDescriptor().GetPath(), "columns": columns, "endpoints": len(info.GetEndpoint()),
		})
	}
}

// read asks for the flight, then every endpoint for its part.
func (c *client) read(ctx context.Context, descriptor *flight.FlightDescriptor) (any, error) {
	info, err := c.info(ctx, descriptor)
	if err != nil {
		return nil, err
	}
	parts := []rows{}
	for _, endpoint := range info.GetEndpoint() {
		asked, err := c.of(endpoint)
		if err != nil {
			return nil, err
		}
		stream, err := asked.DoGet(ctx, endpoint.GetTicket())
		if err != nil {
			return nil, refused(err, nil)
		}
		reader, err := flight.NewRecordReader(stream)
		if err != nil {
			if wrapped := errors.Unwrap(err); wrapped != nil {
				err = wrapped
			}
			return nil, refused(err, stream.Trailer())
		}
		records := []arrow.RecordBatch{}
		for reader.Next() {
			record := reader.RecordBatch()
			record.Retain()
			records = append(records, record)
		}
		if err := reader.Err(); err != nil && !errors.Is(err, io.EOF) {
			return nil, refused(err, stream.Trailer())
		}
		part, err := written(reader.Schema(), records)
		if err != nil {
			return nil, err
		}
		if answer, there := reader.Schema().Metadata().GetValue("flowstate.answer"); there {
			part.Answer = json.RawMessage(answer)
		}
		parts = append(parts, part)
	}
	return parts, nil
}

func written(schema *arrow.Schema, records []arrow.RecordBatch) (rows, error) {
	var sink bytes.Buffer
	writer := ipc.NewWriter(&sink, ipc.WithSchema(schema))
	values := []json.RawMessage{}
	for _, record := range records {
		if err := writer.Write(record); err != nil {
			return rows{}, err
		}
		if record.NumRows() > 100 {
			continue
		}
		raw, err := record.MarshalJSON()
		if err != nil {
			return rows{}, err
		}
		var some []json.RawMessage
		if err := json.Unmarshal(raw, &some); err != nil {
			return rows{}, err
		}
		values = append(values, some...)
	}
	if err := writer.Close(); err != nil {
		return rows{}, err
	}
	all, err := json.Marshal(values)
	return rows{IPC: base64.StdEncoding.EncodeToString(sink.Bytes()), Values: all}, err
}

func (c *client) act(ctx context.Context, kind string, body []byte) (json.RawMessage, error) {
	asked, err := c.at(c.first)
	if err != nil {
		return nil, err
	}
	stream, err := asked.DoAction(ctx, &flight.Action{Type: kind, Body: body})
	if err != nil {
		return nil, refused(err, nil)
	}
	result, err := stream.Recv()
	if err != nil {
		return nil, refused(err, stream.Trailer())
	}
	return json.RawMessage(result.GetBody()), nil
}

// keys are rows of JSON as a batch of the columns by which the view's owner is found.
func (c *client) keys(ctx context.Context, job, view string, raw json.RawMessage) (arrow.RecordBatch, error) {
	body, _ := json.Marshal(map[string]any{"job": job})
	answer, err := c.act(ctx, "directory", body)
	if err != nil {
		return nil, err
	}
	var directory struct {
		Views []struct {
			Name        string   `json:"name"`
			Schema      string   `json:"schema"`
			RoutingKeys []string `json:"routing_keys"`
		} `json:"views"`
	}
	if err := json.Unmarshal(answer, &directory); err != nil {
		return nil, err
	}
	for _, each := range directory.Views {
		if each.Name != view {
			continue
		}
		encoded, err := base64.StdEncoding.DecodeString(each.Schema)
		if err != nil {
			return nil, err
		}
		whole, err := flight.DeserializeSchema(encoded, memory.DefaultAllocator)
		if err != nil {
			return nil, err
		}
		fields := []arrow.Field{}
		for _, name := range each.RoutingKeys {
			found, _ := whole.FieldsByName(name)
			fields = append(fields, found...)
		}
		batch, _, err := array.RecordFromJSON(memory.DefaultAllocator, arrow.NewSchema(fields, nil), bytes.NewReader(raw))
		return batch, err
	}
	return nil, fmt.Errorf("no view %s", view)
}

// lookup puts the keys into the command.
func (c *client) lookup(ctx context.Context, asked question) (any, error) {
	batch, err := c.keys(ctx, asked.Job, asked.View, asked.Keys)
	if err != nil {
		return nil, err
	}
	part, err := written(batch.Schema(), []arrow.RecordBatch{batch})
	if err != nil {
		return nil, err
	}
	command := map[string]any{"v": 1, "job": asked.Job, "view": asked.View, "keys": part.IPC}
	for name, value := range asked.Command {
		command[name] = value
	}
	return c.read(ctx, commanded(command))
}

// replies takes the messages without data, which are errors, out of an exchange.
type replies struct {
	flight.FlightService_DoExchangeClient
	errors []json.RawMessage
}

func (r *replies) Recv() (*flight.FlightData, error) {
	for {
		data, err := r.FlightService_DoExchangeClient.Recv()
		if err != nil || len(data.DataHeader) > 0 {
			return data, err
		}
		r.errors = append(r.errors, json.RawMessage(data.AppMetadata))
	}
}

// exchange sends all messages to every endpoint: a worker finds those of the keys that are its own.
func (c *client) exchange(ctx context.Context, asked question) (any, error) {
	info, err := c.info(ctx, commanded(map[string]any{"v": 1, "job": asked.Job, "view": asked.View}))
	if err != nil {
		return nil, err
	}
	parts := []rows{}
	for _, endpoint := range info.GetEndpoint() {
		var ticket map[string]any
		if err := json.Unmarshal(endpoint.GetTicket().GetTicket(), &ticket); err != nil {
			return nil, err
		}
		found, err := c.exchanged(ctx, endpoint, ticket, asked)
		if err != nil {
			return nil, err
		}
		parts = append(parts, found...)
	}
	return parts, nil
}

func (c *client) exchanged(
	ctx context.Context, endpoint *flight.FlightEndpoint, ticket map[string]any, asked question,
) ([]rows, error) {
	peer, err := c.of(endpoint)
	if err != nil {
		return nil, err
	}
	stream, err := peer.DoExchange(ctx)
	if err != nil {
		return nil, refused(err, nil)
	}
	var writer *flight.Writer
	for number, each := range asked.Messages {
		batch, err := c.keys(ctx, asked.Job, asked.View, each.Keys)
		if err != nil {
			return nil, err
		}
		if writer == nil {
			writer = flight.NewRecordWriter(stream, ipc.WithSchema(batch.Schema()))
			writer.SetFlightDescriptor(commanded(map[string]any{"v": 1, "kind": "lookup", "job": asked.Job, "view": asked.View}))
		}
		said := map[string]any{"id": number}
		for _, name := range []string{"partition", "epoch"} {
			if value, there := ticket[name]; there {
				said[name] = value
			}
		}
		for name, value := range each.Metadata {
			said[name] = value
		}
		raw, _ := json.Marshal(said)
		if err := writer.WriteWithAppMetadata(batch, raw); err != nil {
			return nil, refused(err, stream.Trailer())
		}
	}
	if err := stream.CloseSend(); err != nil {
		return nil, err
	}
	received := &replies{FlightService_DoExchangeClient: stream}
	parts := []rows{}
	reader, err := flight.NewRecordReader(received)
	if err != nil {
		return nil, refused(err, stream.Trailer())
	}
	for reader.Next() {
		part, err := written(reader.Schema(), []arrow.RecordBatch{reader.RecordBatch()})
		if err != nil {
			return nil, err
		}
		part.Reply = append(json.RawMessage{}, reader.LatestAppMetadata()...)
		parts = append(parts, part)
	}
	if err := reader.Err(); err != nil && !errors.Is(err, io.EOF) {
		return nil, refused(err, stream.Trailer())
	}
	for _, each := range received.errors {
		parts = append(parts, rows{Reply: each})
	}
	return parts, nil
}

func (c *client) answer(ctx context.Context, asked question) (any, error) {
	switch asked.Do {
	case "list":
		return c.list(ctx)
	case "read":
		if asked.Path != nil {
			return c.read(ctx, &flight.FlightDescriptor{Type: flight.DescriptorPATH, Path: asked.Path})
		}
		return c.read(ctx, commanded(asked.Command))
	case "lookup":
		return c.lookup(ctx, asked)
	case "exchange":
		return c.exchange(ctx, asked)
	case "action":
		return c.act(ctx, asked.Action, asked.Body)
	}
	return nil, fmt.Errorf("no question %q", asked.Do)
}

func main() {
	c := &client{first: os.Args[1], clients: map[string]flight.Client{}}
	base := context.Background()
	if len(os.Args) > 2 {
		base = metadata.AppendToOutgoingContext(base, "authorization", "Bearer "+os.Args[2])
	}
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 64<<20)
	out := json.NewEncoder(os.Stdout)
	for lines.Scan() {
		var asked question
		said := map[string]any{}
		if err := json.Unmarshal(lines.Bytes(), &asked); err != nil {
			said["error"] = &refusal{Message: err.Error()}
		} else {
			ctx, cancel := context.WithTimeout(base, 30*time.Second)
			answer, err := c.answer(ctx, asked)
			cancel()
			var found *refusal
			if errors.As(err, &found) {
				said["error"] = found
			} else if err != nil {
				said["error"] = &refusal{Message: err.Error()}
			} else {
				said["answer"] = answer
			}
		}
		if err := out.Encode(said); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
}
