import com.fasterxml.jackson.core.JsonFactory;
import com.fasterxml.jackson.core.JsonParser;
import com.fasterxml.jackson.core.JsonToken;
import java.io.IOException;

/** The same by Jackson's streaming parser, without binding. */
final class JacksonReader {
    private final JsonFactory factory = new JsonFactory();

    void read(byte[] json, Event into) throws IOException {
        try (JsonParser parser = factory.createParser(json)) {
            parser.nextToken();
            while (parser.nextToken() == JsonToken.FIELD_NAME) {
                String name = parser.currentName();
                parser.nextToken();
                switch (name) {
                    case "customer" -> into.customer = parser.getText();
                    case "amount" -> into.cents = Math.round(parser.getDoubleValue() * 100);
                    case "at" -> into.at = parser.getLongValue();
                    default -> parser.skipChildren();
                }
            }
        }
    }
}
